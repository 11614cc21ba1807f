"""Files appear whole or not at all."""

import os
from pathlib import Path
from typing import Any

import pytest

from patch_compile.errors import ModelError
from patch_compile.io.atomic import staged_folder, write_bytes, write_text
from tests.support import said


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


def test_crash_between_two_moves_leaves_no_graph_over_other_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.onnx").write_text("old graph")
    (tmp_path / "model.onnx.data").write_text("old data")
    replace = os.replace

    def crash(source: Any, target: Any) -> None:
        if Path(target).suffix == ".onnx":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        write_both(tmp_path)
    assert names(tmp_path) == ["model.onnx.data"]


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
