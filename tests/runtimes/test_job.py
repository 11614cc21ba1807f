"""What parent and worker tell each other arrives whole or not at all."""

from pathlib import Path

import pytest

from patch_compile.errors import ModelError, PatchCompileError, RecipeError
from patch_compile.runtimes._job import (
    Job,
    Outcome,
    read_job,
    read_outcome,
    read_progress,
    write_job,
    write_outcome,
    write_progress,
)


def test_job_comes_back_equal(tmp_path: Path) -> None:
    job = Job(
        "tensorrt_rtx",
        "/m.onnx",
        "/m.engine",
        sm=(86, 89),
        precision=("fp16",),
        batch=(1, 2, 3),
        sequence=(4, 5, 6),
    )
    write_job(tmp_path, job)
    assert read_job(tmp_path) == job


def test_outcome_comes_back_equal(tmp_path: Path) -> None:
    outcome = Outcome("1.2", ("TF32",), {"x": ((1, 8), (2, 8), (3, 8))}, {"batch": 2}, 4096)
    write_outcome(tmp_path, outcome)
    assert read_outcome(tmp_path) == outcome


@pytest.mark.parametrize("error", [ModelError("a | b"), RecipeError("c | d")])
def test_error_comes_back_with_type_and_words(
    tmp_path: Path, error: PatchCompileError
) -> None:
    write_outcome(tmp_path, error)
    found = read_outcome(tmp_path)
    assert type(found) is type(error)
    assert str(found) == str(error)


def test_a_worker_that_died_left_nothing(tmp_path: Path) -> None:
    (tmp_path / "result.part").write_text('{"version"')
    assert read_outcome(tmp_path) is None


def test_progress_is_the_last_whole_line(tmp_path: Path) -> None:
    assert read_progress(tmp_path) is None
    (tmp_path / "progress").write_text("1")
    assert read_progress(tmp_path) is None
    (tmp_path / "progress").unlink()
    write_progress(tmp_path, 1, 6, "parse")
    write_progress(tmp_path, 2, 6, "build")
    assert read_progress(tmp_path) == (2, 6, "build")
    with (tmp_path / "progress").open("a") as file:
        file.write("3\t6")
    assert read_progress(tmp_path) == (2, 6, "build")
