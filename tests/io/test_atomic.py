"""Files appear whole or not at all."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from patch_compile.errors import ModelError
from patch_compile.io.atomic import check_file, staged_folder, write_bytes, write_text
from tests.support import contents, said


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_files_move_in_when_the_body_succeeds(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "a" / "b") as stage:
        (stage / "model.onnx").write_bytes(b"new")
        assert names(tmp_path / "a" / "b") == [stage.name]
    assert names(tmp_path / "a" / "b") == ["model.onnx"]
    assert (tmp_path / "a" / "b" / "model.onnx").read_bytes() == b"new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failing_body_leaves_old_files_and_no_stage(
    tmp_path: Path, error: type[BaseException]
) -> None:
    (tmp_path / "model.onnx").write_bytes(b"old")

    def fail() -> None:
        with staged_folder(tmp_path) as stage:
            (stage / "model.onnx").write_bytes(b"half")
            (stage / "model.onnx.data").write_bytes(b"half")
            raise error

    with pytest.raises(error):
        fail()
    assert names(tmp_path) == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_bytes() == b"old"


def test_files_outside_the_stage_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with staged_folder(tmp_path) as stage:
        (stage / "report.json").write_text("{}")
    assert names(tmp_path) == ["notes.txt", "report.json"]


def test_data_moves_before_the_graph_and_reports_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved, replace = [], os.replace

    def record(source: Any, target: Any) -> None:
        moved.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", record)
    with staged_folder(tmp_path) as stage:
        for name in ("0.html", "a.json", "model.onnx", "z.data", "b.safetensors"):
            (stage / name).write_text("x")
    assert moved == ["b.safetensors", "z.data", "model.onnx", "a.json", "0.html"]


def write_both(folder: Path) -> None:
    with staged_folder(folder) as stage:
        (stage / "model.onnx").write_text("new graph")
        (stage / "model.onnx.data").write_text("new data")


@pytest.mark.parametrize("at", [1, 2, 3, 4])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_stop_between_two_moves_brings_the_old_files_back(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    at: int,
    error: BaseException | type[BaseException],
) -> None:
    (tmp_path / "model.onnx").write_text("old graph")
    (tmp_path / "model.onnx.data").write_text("old data")
    replace, moves = os.replace, []

    def stop(source: Any, target: Any) -> None:
        moves.append(target)
        if len(moves) == at:
            raise error
        replace(source, target)

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises((KeyboardInterrupt, ModelError)):
        write_both(tmp_path)
    assert contents(tmp_path) == {"model.onnx": b"old graph", "model.onnx.data": b"old data"}


def test_stage_of_a_killed_process_is_swept_away_and_that_of_a_living_one_is_not(
    tmp_path: Path,
) -> None:
    for name in ("killed", "young"):
        (tmp_path / f".patch-compile-{name}").mkdir()
    os.utime(tmp_path / ".patch-compile-killed", (0, 0))
    with staged_folder(tmp_path) as living:
        os.utime(living, (0, 0))
        write_both(tmp_path)
        assert living.is_dir()
        assert ".patch-compile-young" in names(tmp_path)
        assert ".patch-compile-killed" not in names(tmp_path)


def test_two_writers_of_one_folder_leave_the_files_of_one(tmp_path: Path) -> None:
    def write(word: str) -> None:
        for _ in range(20):
            with staged_folder(tmp_path) as stage:
                for name in ("model.onnx", "model.onnx.data", "report.json"):
                    (stage / name).write_text(word)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(write, "abc"))
    assert len(set(contents(tmp_path).values())) == 1
    assert names(tmp_path) == ["model.onnx", "model.onnx.data", "report.json"]


def test_full_disk_in_the_body_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught, staged_folder(tmp_path / "out") as stage:
        (stage / "absent" / "file").write_text("x")
    assert "cannot be written: No such file or directory; choose another" in said(caught)


def test_error_of_a_reader_in_the_body_stays_its_own(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), staged_folder(tmp_path / "out"):
        (tmp_path / "absent").read_text("utf-8")


def test_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    target = tmp_path / "file" / "out"
    with pytest.raises(ModelError) as caught, staged_folder(target):
        pass
    assert said(caught) == (
        f"output folder '{target}' | cannot be written: Not a directory; choose another"
    )


def test_unwritable_folder_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise PermissionError(13, "Permission denied")

    # By hand: a test run as root may write anywhere.
    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(ModelError) as caught, staged_folder(tmp_path):
        pass
    assert "cannot be written: Permission denied; choose another" in said(caught)


def test_folder_in_the_place_of_a_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.mkdir()
    with pytest.raises(ModelError) as caught:
        write_text(path, "{}")
    assert f"output '{path}' | cannot be replaced: Is a directory" in said(caught)
    assert names(tmp_path) == ["report.json"]


def test_single_files_are_replaced_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    write_bytes(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    write_text(path, "größer")
    assert path.read_bytes() == "größer".encode()
    assert names(path.parent) == ["file"]


def test_a_place_for_a_file_is_checked_and_nothing_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    check_file(tmp_path / "file")
    check_file(tmp_path / "new" / "deep" / "file")
    for path, told in (("folder", "is a folder"), ("file/new", "cannot be written")):
        with pytest.raises(ModelError) as caught:
            check_file(tmp_path / path)
        assert told in said(caught)
    assert names(tmp_path) == ["file", "folder"]
