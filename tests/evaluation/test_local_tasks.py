"""Questions are read in two forms, and asked as lm-evaluation-harness asks its own."""

import json
from pathlib import Path
from typing import Any

import pytest

from patch_compile.errors import RecipeError
from patch_compile.evaluation.local_tasks import LocalTask, find_task

QUERY = {"query": "Question: why?\n", "choices": ["so", "no"], "gold": 1}
OPTIONS = {"context_options": ["He so he", "He so she"], "continuation": "ran.", "gold": 0}


def _write(folder: Path, *rows: Any) -> Path:
    text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)
    (folder / "t.jsonl").write_text(text + "\n", "utf-8")
    return folder


def _task(folder: Path, *rows: Any) -> LocalTask:
    task = find_task("t", _write(folder, *rows))
    assert task is not None
    return task


def test_a_question_gets_a_line_for_its_answer(tmp_path: Path) -> None:
    task = _task(tmp_path, {**QUERY, "more": 1}, {**QUERY, "query": "The sky is"})
    first, second = task.rows
    # piqa.yaml and arc_easy.yaml: "Question: {{goal}}\nAnswer:".
    assert task.text(first) == "Question: why?\nAnswer:"
    # openbookqa.yaml: the stem as it is.
    assert task.text(second) == "The sky is"
    assert (task.choices(first), task.target(first)) == (["so", "no"], 1)
    assert task.metrics == ("acc", "acc_norm")


def test_choices_may_be_contexts(tmp_path: Path) -> None:
    task = _task(tmp_path, OPTIONS)
    (row,) = task.rows
    # preprocess_winogrande.py: the prompt is the index, the target what follows.
    assert (task.text(row), task.target(row)) == (0, "ran.")
    assert task.choices(row) == ["He so he", "He so she"]
    assert task.metrics == ("acc",)


def test_tasks_that_have_no_file_are_left_to_the_harness(tmp_path: Path) -> None:
    assert find_task("t", None) is None
    assert find_task("t", tmp_path) is None
    with pytest.raises(RecipeError, match=r"task-dir '.*none' \| is no folder"):
        find_task("t", tmp_path / "none")


@pytest.mark.parametrize(
    "row",
    [
        "{",
        "3",
        "null",
        "[1]",
        {"query": "q", "choices": ["a", "b"]},
        {**QUERY, "gold": 2},
        {**QUERY, "gold": -1},
        {**QUERY, "gold": "1"},
        {**QUERY, "gold": True},
        {**QUERY, "choices": ["a"]},
        {**QUERY, "choices": ["a", ""]},
        {**QUERY, "choices": "ab"},
        {**OPTIONS, "continuation": None},
    ],
)
def test_malformed_lines_are_named(tmp_path: Path, row: Any) -> None:
    with pytest.raises(RecipeError, match=r"t\.jsonl' \| line 2 is no question"):
        find_task("t", _write(tmp_path, QUERY, row))


def test_a_file_holds_one_form_and_a_question(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"2 questions of several forms or none"):
        find_task("t", _write(tmp_path, QUERY, OPTIONS))
    with pytest.raises(RecipeError, match=r"0 questions of several forms or none"):
        find_task("t", _write(tmp_path))
    (tmp_path / "t.jsonl").write_bytes(b"\xff")
    with pytest.raises(RecipeError, match="cannot be read"):
        find_task("t", tmp_path)
