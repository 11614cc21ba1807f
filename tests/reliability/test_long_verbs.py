"""The verbs that hand their work to torch, ONNX Runtime and TensorRT, on a bad day.

As in `test_failures`, at every step on the files of the output folder; what such a library
writes by itself is met by a limit on file sizes.
"""

import errno
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from fuzz.failures import Ended, contents, failures, file_limit, run_quietly
from fuzz.home import make_home
from fuzz.learning import make_learned
from tests.reliability.test_failures import ROOT, Trial, assert_one_line
from tests.words import words

_LEARN = ("learn", "@hf", "--data", "@text.txt", "--tile", "weight", "--sparsity", "0.25")
_FEW = ("--samples", "2", "--window", "16", "-o", "!masks.json")
_COMPILE = ("@words/model.onnx", "--tiles", "@words/masks.json", "-o", "!")
_TEXT = (
    "--data",
    "@words/text.txt",
    "--calibration-tokens",
    "64",
    "--calibration-window",
    "16",
)
# As in test_failures: `@` before a file of the home, `!` before one of the output.
COMMANDS: dict[str, tuple[str, ...]] = {
    "learn": (*_LEARN, *_FEW),
    "learn by steps": (
        *(*_LEARN, "--method", "topk-ste", "--steps", "2", "--holdout", "1"),
        *_FEW,
    ),
    "permute": (
        *("permute", "@hf", "--data", "@text.txt", "--rounds", "1"),
        *("--samples", "2", "--window", "16", "-o", "!"),
    ),
    "build": ("build", "!compiled.onnx", "--sm", "86"),
    "quantize": (*_COMPILE, "--quantize", "int8", *_TEXT),
    "export": ("export", "@hf", "-o", "!model.onnx"),
}
# Tracing takes seconds, and there are many steps.
_SLOW = "export"
# Logs, and what `--resume` goes on from: they grow while a run goes on.
_GROWING = ("masks.run/", "compiled.sm86.engine.log")
_ENGINE, _FACTS = "compiled.sm86.engine", "compiled.sm86.engine.json"


def params() -> list[object]:
    return [
        pytest.param(name, marks=pytest.mark.slow if name == _SLOW else ())
        for name in COMMANDS
    ]


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_home(tmp_path_factory.mktemp("fuzz") / "home")
    make_learned(folder)
    words(folder / "words")
    return folder


def trial_of(home: Path, tmp_path: Path, name: str) -> Trial:
    if name == "build" and importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt-rtx is not installed")
    return Trial(home, tmp_path / "output", COMMANDS[name])


def lasting(files: dict[str, bytes]) -> dict[str, bytes]:
    """What is there for good; engines, of which TensorRT-RTX has several, by their digest."""
    kept = {name: data for name, data in files.items() if not name.startswith(_GROWING)}
    if {_ENGINE, _FACTS} <= kept.keys():
        told = json.loads(kept[_FACTS])["engine_sha256"]
        assert told == sha256(kept[_ENGINE]).hexdigest()
    return {name: b"" if name in (_ENGINE, _FACTS) else data for name, data in kept.items()}


def states(trial: Trial, name: str) -> list[dict[str, bytes]]:
    """The output before, between two steps that are each all or nothing, and after.

    A model is quantised in the place it was compiled to. An engine that is there is noted in
    the report, and then the report is drawn.
    """
    before, after = (lasting(state) for state in trial.outcomes())
    between = []
    if name == "quantize":
        plain = Trial(trial.home, trial.folder, _COMPILE)
        between = [lasting(plain.outcomes()[1])]
    if name == "build":
        built = {**after, **before}
        between = [built, {**built, "report.json": after["report.json"]}]
    return [before, *between, after]


def assert_ended(end: Ended) -> None:
    """As `assert_one_line`, after what an earlier step was glad to say."""
    *said, last = end.err.splitlines(keepends=True)
    assert all(line.startswith(("wrote ", "quantised ")) for line in said), end.err
    assert_one_line(replace(end, err=last))


@pytest.mark.parametrize("name", params())
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES], ids=["full", "denied"])
def test_long_verb_that_fails_at_any_step_is_one_line_and_changes_nothing(
    home: Path, tmp_path: Path, name: str, number: int
) -> None:
    trial = trial_of(home, tmp_path, name)
    known = states(trial, name)
    ended = list(failures(trial.fresh, trial.arguments, number))
    assert len(ended) > 2
    for end in ended:
        if end.code == 0:
            assert lasting(end.files) == known[-1]
        else:
            assert_ended(end)
            assert lasting(end.files) in known[:-1], (end.step, end.err)


@pytest.mark.parametrize("name", params())
@pytest.mark.parametrize("size", [0, 700])
def test_long_verb_on_a_full_disk_is_one_line_and_changes_nothing(
    home: Path, tmp_path: Path, name: str, size: int
) -> None:
    trial = trial_of(home, tmp_path, name)
    known = states(trial, name)
    trial.fresh()
    with file_limit(size):
        code, err = run_quietly(trial.arguments(trial.folder))
    end = Ended(0, code, err, contents(trial.folder))
    assert_ended(end)
    assert lasting(end.files) in known[:-1]
    assert not list(trial.folder.glob(".patch-compile-*"))


@pytest.mark.parametrize("name", params())
def test_long_verb_that_is_killed_at_any_step_mixes_nothing(
    home: Path, tmp_path: Path, name: str
) -> None:
    trial = trial_of(home, tmp_path, name)
    known = states(trial, name)
    done = subprocess.run(
        [sys.executable, "-c", KILLING, str(home), str(trial.folder), *COMMANDS[name]],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    steps = json.loads(done.stdout)
    assert len(steps) > 2
    for step in steps:
        files = lasting(contents(tmp_path / "killed" / str(step)))
        # Files of one state, some perhaps set aside: never those of two.
        assert any(files.items() <= state.items() for state in known), (step, sorted(files))


KILLING = """\
import json, shutil, sys
from pathlib import Path
from fuzz.failures import crashes
from tests.reliability.test_failures import Trial
home, folder = map(Path, sys.argv[1:3])
trial = Trial(home, folder, tuple(sys.argv[3:]))
steps = []
for end in crashes(trial.fresh, trial.arguments):
    shutil.copytree(folder, folder.parent / "killed" / str(end.step))
    steps.append(end.step)
print(json.dumps(steps))
"""


def test_run_goes_on_to_the_same_masks_from_what_is_left(home: Path, tmp_path: Path) -> None:
    """With the run whole, with its arrays and log alone, and with nothing."""
    trial = trial_of(home, tmp_path, "learn by steps")
    after = lasting(trial.outcomes()[1])
    run = trial.folder / "masks.run"
    kept = {path.name: path.read_bytes() for path in run.iterdir()}
    for lost in (("masks.json",), ("state.json", "masks.json"), tuple(kept)):
        trial.fresh()
        shutil.rmtree(run, ignore_errors=True)
        run.mkdir()
        for name, data in kept.items():
            if name not in lost:
                (run / name).write_bytes(data)
        resumed = ["--resume"] if "state.json" in {p.name for p in run.iterdir()} else []
        code, err = run_quietly([*trial.arguments(trial.folder), *resumed])
        assert code == 0, err
        assert lasting(contents(trial.folder)) == after
