"""Every verb refuses in one line a file that is missing, empty, garbage, or a folder."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.bad_files import CASES, OUTPUTS, Case, command_line, make_job
from tests.cli.conftest import Cli

GARBAGE = bytes(range(255, -1, -1)) * 4


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_job(tmp_path_factory.mktemp("home"))


@pytest.fixture
def folder(home: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(home, tmp_path / "home"))


def files(folder: Path) -> dict[Path, bytes]:
    """All but the logs of builds that failed, which are meant to stay."""
    there = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".log"]
    return {path: path.read_bytes() for path in there}


def suffix(case: Case) -> str:
    """The ending that lets a bad file through to its reader."""
    endings = {"tiles": ".json", "masks": ".json", "tokenizer": ".json", "data": ".txt"}
    return endings.get(case.name, ".onnx")


def missing(path: Path) -> None:
    """Leaves nothing there."""


def folder_there(path: Path) -> None:
    path.mkdir()


def empty(path: Path) -> None:
    path.touch()


def garbage(path: Path) -> None:
    path.write_bytes(GARBAGE)


@pytest.mark.parametrize("make", [missing, folder_there, empty, garbage])
@pytest.mark.parametrize("case", [c for c in CASES if c.name not in OUTPUTS], ids=str)
def test_bad_input_is_one_line(
    cli: Cli, folder: Path, case: Case, make: Callable[[Path], None]
) -> None:
    bad = folder / f"bad{suffix(case)}"
    make(bad)
    before = files(folder)
    refused(cli, folder, command_line(case, folder, bad))
    assert files(folder) == before
    assert not (folder / "written").exists() or not files(folder / "written")


@pytest.mark.parametrize("case", [c for c in CASES if c.name in OUTPUTS], ids=str)
def test_output_below_a_file_is_one_line(cli: Cli, folder: Path, case: Case) -> None:
    (folder / "file").write_text("mine")
    before = files(folder)
    endings = {"plot": ".png", "bundle": ".tar", "export": ".onnx", "report": ".html"}
    ending = endings.get(case.name, endings.get(case.verb, ".json"))
    refused(cli, folder, command_line(case, folder, folder / "file" / f"new{ending}"))
    assert files(folder) == before


def refused(cli: Cli, folder: Path, line: list[str]) -> None:
    ran = cli(*line)
    assert ran.code == 1, (line, ran.err)
    assert ran.err.startswith("patch-compile: "), ran.err
    assert ran.err.count("\n") == 1, ran.err
    assert " | " in ran.err
