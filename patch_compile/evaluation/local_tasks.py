"""Zero-shot tasks from files, so that they run offline.

A file holds one JSON object a line, in one of two forms:

1. `query`, `choices` (strings) and `gold`, the index of the right one: which choice follows
   the query? A query that starts with "Question:" gets a line "Answer:"
   behind it, as lm-evaluation-harness asks PIQA and ARC; OpenBookQA's are asked as they are.
2. `context_options` (strings), `continuation` and `gold`: which context does the continuation
   follow? This is Winogrande's partial evaluation (Trinh and Le, arXiv 1806.02847). All
   choices share one continuation, so there is no likelihood by length.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patch_compile.errors import RecipeError
from patch_compile.parsing import parse_json

__all__ = ["LocalTask", "find_task"]


@dataclass(frozen=True)
class LocalTask:
    """Questions of one form.

    Attributes:
        name: of the task.
        rows: one mapping a question, all with the same keys.
    """

    name: str
    rows: tuple[Mapping[str, Any], ...]

    @property
    def by_context(self) -> bool:
        """The choices are contexts, not continuations."""
        return "context_options" in self.rows[0]

    @property
    def metrics(self) -> tuple[str, ...]:
        """What lm-evaluation-harness computes of it."""
        return ("acc",) if self.by_context else ("acc", "acc_norm")

    def text(self, row: Mapping[str, Any]) -> str | int:
        """The prompt; where the choices are contexts, the index of the right one."""
        if self.by_context:
            gold: int = row["gold"]
            return gold
        query = str(row["query"])
        return f"{query.rstrip()}\nAnswer:" if query.startswith("Question:") else query

    def target(self, row: Mapping[str, Any]) -> str | int:
        """The index of the right choice; where the choices are contexts, what follows."""
        target: str | int = row["continuation"] if self.by_context else row["gold"]
        return target

    def choices(self, row: Mapping[str, Any]) -> list[str]:
        """What is compared."""
        return list(row["context_options" if self.by_context else "choices"])


def find_task(name: str, folder: Path | None) -> LocalTask | None:
    """Reads `<name>.jsonl` of a folder; None if there is no folder or no such file in it.

    Raises:
        RecipeError: if the folder is missing, or the file is empty or malformed.
    """
    if folder is None:
        return None
    if not folder.is_dir():
        raise RecipeError(f"task-dir '{folder}' | is no folder; expected one of .jsonl files")
    path = folder / f"{name}.jsonl"
    if not path.is_file():
        return None
    rows = tuple(_rows(path))
    if len({tuple(row) for row in rows}) != 1:
        raise RecipeError(
            f"task file '{path}' | has {len(rows)} questions of several forms or none; "
            "expected one form"
        )
    return LocalTask(name, rows)


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"task file '{path}' | cannot be read: {error}; expected JSON lines in UTF-8"
        ) from error
    return [_row(path, i, line) for i, line in enumerate(lines, 1) if line.strip()]


def _row(path: Path, number: int, line: str) -> dict[str, Any]:
    """Returns the fields of one question, in a fixed order."""
    try:
        given = parse_json(line)
    except ValueError as error:
        raise RecipeError(_malformed(path, number)) from error
    fields = given if isinstance(given, dict) else {}
    for text, options in (("query", "choices"), ("continuation", "context_options")):
        row = {key: fields.get(key) for key in (text, options, "gold")}
        if _fits(row[text], row[options], row["gold"]):
            return row
    raise RecipeError(_malformed(path, number))


def _fits(text: Any, options: Any, gold: Any) -> bool:
    return (
        isinstance(text, str)
        and isinstance(options, list)
        and len(options) > 1
        and all(isinstance(option, str) and option for option in options)
        # True is an int, too.
        and type(gold) is int
        and 0 <= gold < len(options)
    )


def _malformed(path: Path, number: int) -> str:
    return (
        f"task file '{path}' | line {number} is no question; expected 'query', 'choices' and "
        "'gold', or 'context_options', 'continuation' and 'gold'"
    )
