"""Nothing heavy is imported before it is needed, and its absence is told in one line."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from patch_compile._require import pip_install
from patch_compile.io.masks_file import save_masks
from tests.support import Linear, linear_model, masks_of, random_mask, random_weight

HEAVY = (
    *("torch", "transformers", "onnxruntime", "tensorrt", "tensorrt_rtx", "tokenizers"),
    "matplotlib",
)

# Its modules define classes of torch; `require` loads them.
NEEDS_TORCH = "patch_compile.learn.training."

# Makes a package look as if it was not installed, to `import` and to `find_spec`.
BLOCK = f"""
import sys
from importlib.machinery import PathFinder

class Lean(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        blocked = name.partition(".")[0] in {HEAVY!r}
        return None if blocked else super().find_spec(name, path, target)

sys.meta_path = [Lean if finder is PathFinder else finder for finder in sys.meta_path]
"""

IMPORT_EVERYTHING = """
import importlib, pkgutil
import patch_compile

for module in pkgutil.walk_packages(patch_compile.__path__, "patch_compile."):
    if module.name == "patch_compile.__main__":
        continue
    try:
        importlib.import_module(module.name)
    except ImportError as error:
        print(module.name, error.name)
"""

COMMAND_LINE = "from patch_compile.cli.main import main; main()"


def _python(code: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model of one weight (16, 32), with masks.json beside it."""
    rng = np.random.default_rng(0)
    weight = random_weight(rng, 16, 32)
    save_masks(
        masks_of(random_mask(rng, "a.weight", weight, "band:4")), tmp_path / "masks.json"
    )
    return linear_model([Linear("a", weight)], tmp_path / "model.onnx")


@pytest.mark.parametrize("module", ["patch_compile", "patch_compile.cli.main"])
def test_importing_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*(set({HEAVY!r}) & set(sys.modules)), 'and no more')"
    done = _python(code)
    assert (done.stdout, done.stderr) == ("and no more\n", "")


def test_importing_the_package_alone_does_not_load_numpy() -> None:
    done = _python("import sys, patch_compile; print('numpy' in sys.modules)")
    assert done.stdout == "False\n"


def test_everything_imports_without_the_extras() -> None:
    done = _python(BLOCK + IMPORT_EVERYTHING)
    assert done.returncode == 0, done.stderr
    failed = dict(line.split() for line in done.stdout.splitlines())
    lean = {name: lacks for name, lacks in failed.items() if not name.startswith(NEEDS_TORCH)}
    assert lean == {}
    assert set(failed.values()) <= {"torch", "transformers"}


def test_the_main_job_needs_no_extra(model: Path) -> None:
    out = model.parent / "out"
    masks = model.parent / "masks.json"
    done = _python(BLOCK + COMMAND_LINE, model, "--tiles", masks, "-o", out)
    assert done.returncode == 0, done.stderr
    assert done.stderr == f"wrote {out / 'compiled.onnx'}\n"
    inspected = _python(BLOCK + COMMAND_LINE, "inspect", out / "compiled.onnx")
    assert "a.weight" in inspected.stdout


@pytest.mark.parametrize(
    ("verb", "package", "extra"),
    [
        ("verify", "onnxruntime", "cpu"),
        ("bench", "onnxruntime", "cpu"),
        ("generate", "onnxruntime", "cpu"),
        ("learn", "torch", "learn"),
        ("export", "torch", "learn"),
        ("build", "tensorrt_rtx", "rtx"),
    ],
)
def test_a_missing_extra_is_named_in_one_line(
    model: Path, verb: str, package: str, extra: str
) -> None:
    more: list[str | Path] = [model] if verb in ("verify", "bench") else []
    more += ["--prompt", "w1"] if verb == "generate" else []
    more += ["--tiles", model.parent / "masks.json"] if verb == "verify" else []
    before = sorted(model.parent.iterdir())
    done = _python(BLOCK + COMMAND_LINE, verb, model, *more)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"patch-compile: package '{package}' | ")
    assert done.stderr.endswith(f"{pip_install(extra)}\n")
    assert done.stderr.count("\n") == 1
    assert sorted(model.parent.iterdir()) == before


def test_the_pip_command_names_what_an_extra_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    stated = [
        "numpy>=2.0",
        'tensorrt>=10.3; extra == "gpu"',
        'onnxruntime-gpu>=1.22; extra == "gpu"',
        'onnxruntime>=1.22; extra == "cpu"',
    ]
    monkeypatch.setattr("patch_compile._require.requires", lambda _: stated)
    assert pip_install("gpu") == "pip install 'tensorrt>=10.3' 'onnxruntime-gpu>=1.22'"
    assert pip_install("gpu", "onnxruntime") == "pip install 'onnxruntime-gpu>=1.22'"
    monkeypatch.setattr("patch_compile._require.requires", lambda _: None)
    assert pip_install("gpu") == "pip install 'patch-compile[gpu]'"
