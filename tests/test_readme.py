"""What the documents tell a reader to type works, and what they point at exists.

Commands run verbatim and in order, in a folder that holds what the README takes for granted:
a model at `SmolLM2-135M/`, tiny and random here, and a text at `text.txt`. Python blocks run
after them, in one process.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from patch_compile.cli.main import app, run
from patch_compile.learn.model import save_checkpoint
from tests.learn.tiny import tiny_model, write_text

ROOT = Path(__file__).parent.parent
DOCUMENTS = ("README.md", "CONTRIBUTING.md")

# What a command begins with, or holds, and why a test cannot run it.
SKIPPED = {
    r"make\b": "installs and tests the whole project",
    r"git clone\b": "needs a network",
    r"(python3? -m )?pip install\b": "needs a network and would change this environment",
    r"cd\b": "the folder is this test's",
    r".*\btrtexec\b": "needs TensorRT and a GPU",
    r".*\btorchrun\b": "needs several processes for minutes",
}


def _blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def _commands(text: str) -> list[str]:
    """The command lines of all bash blocks, continued lines joined, comments dropped."""
    lines = "".join(_blocks(text, "bash")).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def _skipped(command: str) -> bool:
    return any(re.match(pattern, command) for pattern in SKIPPED)


def _code(text: str) -> str:
    """Fenced blocks and inline code: what is meant literally."""
    fenced = re.findall(r"^```\w*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return "\n".join([*fenced, *re.findall(r"`([^`]+)`", prose)])


def _run(command: list[str], folder: Path) -> None:
    commands = Path(sys.executable).parent
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout}\n{done.stderr}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_checkpoint(tiny_model(layers=1), tmp_path / "SmolLM2-135M")
    write_text(tmp_path / "text.txt", 4096)
    return tmp_path


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_and_example_runs(document: str, folder: Path) -> None:
    text = (ROOT / document).read_text("utf-8")
    for command in _commands(text):
        if not _skipped(command):
            _run(["bash", "-euo", "pipefail", "-c", command], folder)
    examples = "\n".join(_blocks(text, "python"))
    if examples:
        _run([sys.executable, "-c", examples], folder)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_relative_link_leads_to_a_file(document: str) -> None:
    text = (ROOT / document).read_text("utf-8")
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text)
    missing = [
        target
        for target in targets
        if not re.match(r"[a-z]+:", target) and not (ROOT / target).exists()
    ]
    assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_verb_exists(document: str) -> None:
    code = _code((ROOT / document).read_text("utf-8"))
    verbs = set(re.findall(r"\bpatch-compile ([a-z]+)(?=\s|$)", code, re.MULTILINE))
    assert verbs - set(app) == set()


def test_every_option_of_the_readme_exists(capsys: pytest.CaptureFixture[str]) -> None:
    verbs = [[name] for name in app if not name.startswith("-")]
    assert [run([*verb, "--help"]) for verb in ([], *verbs)] == [0] * (len(verbs) + 1)
    known = set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out))
    code = _code((ROOT / "README.md").read_text("utf-8"))
    lines = [line for line in code.splitlines() if not _skipped(line)]
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", "\n".join(lines)))
    assert named - known == set()


SAMPLE = """Text with `patch-compile verb --flag` and [a](b.md#c).

```bash
# a comment
pip install x
patch-compile m.onnx \\
  --tiles t
```

```python
x = 1
```

```
patch-compile other
```
"""


def test_commands_are_found_and_told_apart() -> None:
    found = _commands(SAMPLE)
    assert found == ["pip install x", "patch-compile m.onnx    --tiles t"]
    assert [_skipped(command) for command in found] == [True, False]
    assert _blocks(SAMPLE, "python") == ["x = 1\n"]
    verbs = re.findall(r"\bpatch-compile ([a-z]+)(?=\s|$)", _code(SAMPLE), re.MULTILINE)
    assert sorted(verbs) == ["other", "verb"]


def test_a_failing_command_fails(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"none\.onnx"):
        _run(["bash", "-c", "patch-compile inspect none.onnx | cat; false"], tmp_path)
