"""What the documents tell a reader to type works, and what they point at exists.

Commands run verbatim and in order, in a folder that holds what the README takes for granted:
a model at `SmolLM2-135M/`, tiny and random here, and a text at `text.txt`. Python blocks run
after them, in one process.
"""

import re
from pathlib import Path

import pytest

from patch_compile.cli.main import app, run
from patch_compile.learn.model import save_checkpoint
from tests.documents import blocks, code_of, commands, run_command, run_examples, skipped
from tests.learn.tiny import tiny_model, write_text

ROOT = Path(__file__).parent.parent
DOCUMENTS = ("README.md", "CONTRIBUTING.md")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_checkpoint(tiny_model(layers=1), tmp_path / "SmolLM2-135M")
    write_text(tmp_path / "text.txt", 4096)
    return tmp_path


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_and_example_runs(document: str, folder: Path) -> None:
    run_examples((ROOT / document).read_text("utf-8"), folder)


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
    code = code_of((ROOT / document).read_text("utf-8"))
    verbs = set(re.findall(r"\bpatch-compile ([a-z]+)(?=\s|$)", code, re.MULTILINE))
    assert verbs - set(app) == set()


def test_every_option_of_the_readme_exists(capsys: pytest.CaptureFixture[str]) -> None:
    verbs = [[name] for name in app if not name.startswith("-")]
    assert [run([*verb, "--help"]) for verb in ([], *verbs)] == [0] * (len(verbs) + 1)
    known = set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out))
    code = code_of((ROOT / "README.md").read_text("utf-8"))
    lines = [line for line in code.splitlines() if not skipped(line)]
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
    found = commands(SAMPLE)
    assert found == ["pip install x", "patch-compile m.onnx    --tiles t"]
    assert [skipped(command) for command in found] == [True, False]
    assert blocks(SAMPLE, "python") == ["x = 1\n"]
    verbs = re.findall(r"\bpatch-compile ([a-z]+)(?=\s|$)", code_of(SAMPLE), re.MULTILINE)
    assert sorted(verbs) == ["other", "verb"]


def test_a_failing_command_fails(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"none\.onnx"):
        run_command(["bash", "-c", "patch-compile inspect none.onnx | cat; false"], tmp_path)
