"""A disk that fills, a process that is killed, a folder that is shared: earlier output stays.

Failures and kills come at every step on the files of the output folder, one after the other;
see `fuzz.failures`.
"""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fuzz.failures import Ended, contents, failures, file_limit, run_quietly
from fuzz.home import make_home

ROOT = Path(__file__).parents[2]

# What writes: arguments, with `@` before a file of the home and `!` before one of the output.
COMMANDS: dict[str, tuple[str, ...]] = {
    "compile": ("@model.onnx", "--tiles", "@mask.npz", "--tile", "band:8", "-o", "!"),
    "compile external": ("@outside.onnx", "--tiles", "@masks.json", "-o", "!"),
    "cut": ("cut", "@masks.json", "--sparsity", "0.1", "-o", "!masks.json"),
    "plan": ("plan", "@model.onnx", "--tiles", "@masks.json", "-o", "!plan.json"),
    "report": ("report", "!"),
    "results": ("results", "@results", "--into", "!compiled.onnx"),
    "bundle": ("build", "@out/compiled.onnx", "--bundle", "!bundle.tar"),
    "save-config": ("inspect", "@model.onnx", "--save-config", "!options.json"),
}


@dataclass(frozen=True)
class Trial:
    """One command over a folder that holds earlier output.

    Attributes:
        home: valid inputs.
        folder: of the output.
        words: see `COMMANDS`.
    """

    home: Path
    folder: Path
    words: tuple[str, ...]

    def fresh(self) -> Path:
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.home / "out", self.folder)
        for name in ("masks.json", "masks.safetensors"):
            shutil.copy(self.home / name, self.folder)
        return self.folder

    def arguments(self, folder: Path) -> list[str]:
        places = {"@": self.home, "!": folder}
        return [str(places[w[0]] / w[1:]) if w[0] in places else w for w in self.words]

    def outcomes(self) -> tuple[dict[str, bytes], dict[str, bytes]]:
        """The output as it was before, and after a run without trouble."""
        before = contents(self.fresh())
        code, err = run_quietly(self.arguments(self.folder))
        assert code == 0, err
        return before, contents(self.folder)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("fuzz") / "home")


@pytest.fixture(params=COMMANDS)
def trial(request: pytest.FixtureRequest, home: Path, tmp_path: Path) -> Trial:
    return Trial(home, tmp_path / "output", COMMANDS[request.param])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES], ids=["full", "denied"])
def test_error_at_any_step_is_one_line_and_changes_nothing(trial: Trial, number: int) -> None:
    before, after = trial.outcomes()
    ended = list(failures(trial.fresh, trial.arguments, number))
    assert len(ended) > 2
    for end in ended:
        if end.code == 0:
            # The step was one to spare, as to remove an empty stage.
            assert end.files == after
        else:
            assert_one_line(end)
            assert_untouched(end, before, after)


def assert_one_line(end: Ended) -> None:
    assert end.code == 1
    assert end.err.startswith("patch-compile: "), end
    assert end.err.count("\n") == 1
    assert " | " in end.err


def assert_untouched(end: Ended, before: dict[str, bytes], after: dict[str, bytes]) -> None:
    """Of a verb that changes report.json and then its page, the first may be done."""
    changed = {
        name for name in before.keys() | end.files if before.get(name) != end.files[name]
    }
    assert changed <= {"report.json"}, (end.step, changed)
    assert all(end.files[name] == after[name] for name in changed)


@pytest.mark.parametrize("size", [0, 700, 9000])
def test_full_disk_is_one_line_and_changes_nothing(trial: Trial, size: int) -> None:
    before, after = trial.outcomes()
    trial.fresh()
    with file_limit(size):
        code, err = run_quietly(trial.arguments(trial.folder))
    end = Ended(0, code, err, contents(trial.folder))
    if code == 0:
        assert end.files == after
        return
    assert_one_line(end)
    assert_untouched(end, before, after)
    assert not list(trial.folder.glob(".patch-compile-*"))


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a small file system with the options given."""
    places: list[Path] = []

    def mount(options: str) -> Path:
        place = tmp_path / f"mounted{len(places)}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
        places.append(place)
        return place

    yield mount
    for place in places:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("kilobytes", [4, 40])
def test_small_file_system_is_one_line(
    trial: Trial, mounted: Callable[[str], Path], kilobytes: int
) -> None:
    folder = mounted(f"size={kilobytes}k")
    code, err = run_quietly(trial.arguments(folder))
    if code:
        assert_one_line(Ended(0, code, err, {}))
        assert not [path for path in folder.rglob("*") if path.is_file()]


def test_read_only_folder_is_one_line(trial: Trial, mounted: Callable[[str], Path]) -> None:
    folder = mounted("size=1m")
    shutil.copytree(trial.fresh(), folder, dirs_exist_ok=True)
    before = contents(folder)
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    code, err = run_quietly(trial.arguments(folder))
    assert_one_line(Ended(0, code, err, {}))
    assert contents(folder) == before


@pytest.mark.parametrize("name", ["compile", "compile external", "cut", "results", "bundle"])
def test_kill_at_any_step_mixes_nothing(home: Path, tmp_path: Path, name: str) -> None:
    """In a process of its own, with one thread: it forks for every step."""
    trial = Trial(home, tmp_path / "output", COMMANDS[name])
    before, after = trial.outcomes()
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", KILLING, str(home), str(trial.folder), name],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    steps = int(done.stdout)
    assert steps > 2
    for step in range(1, steps + 1):
        files = contents(tmp_path / "killed" / str(step))
        changed = {n: data for n, data in files.items() if before.get(n) != data}
        assert changed.items() <= after.items(), step
        # A graph stands only over the data it was written with. A verb that changes
        # report.json and then its page may have done the first alone.
        kept = {n: data for n, data in files.items() if before.get(n) == data != after.get(n)}
        assert name == "results" or not (kept and changed), (step, kept.keys(), changed.keys())


KILLING = """\
import shutil, sys
from pathlib import Path
from fuzz.failures import crashes
from tests.reliability.test_failures import COMMANDS, Trial
home, folder = map(Path, sys.argv[1:3])
trial = Trial(home, folder, COMMANDS[sys.argv[3]])
steps = 0
for steps, end in enumerate(crashes(trial.fresh, trial.arguments), 1):
    shutil.copytree(folder, folder.parent / "killed" / str(end.step))
print(steps)
"""


def test_two_compiles_into_one_folder_leave_the_files_of_one(
    home: Path, tmp_path: Path
) -> None:
    lines = {
        one: Trial(home, tmp_path / one, COMMANDS[one])
        for one in ("compile", "compile external")
    }
    sets = [trial.outcomes()[1] for trial in lines.values()]
    wanted = [{n: s[n] for n in s if not n.startswith("masks")} for s in sets]
    shared = tmp_path / "shared"
    for _ in range(3):
        running = [_start(trial.arguments(shared)) for trial in lines.values()]
        assert [process.wait(120) for process in running] == [0, 0]
        assert contents(shared) in wanted


def _start(arguments: list[str]) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "patch_compile", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=quiet, stderr=quiet)
