"""Choosing weights by name: globs, or regular expressions behind `re:`; names of files."""

import os
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from patch_compile.errors import RecipeError

__all__ = ["chosen", "written"]


def written(path: str | Path) -> str:
    """Returns the last part of a path as text; bytes that are no UTF-8 are spelled out."""
    return os.fsencode(Path(path).name).decode("utf-8", "backslashreplace")


def chosen(names: Iterable[str], include: Sequence[str], ignore: Sequence[str]) -> list[str]:
    """Keeps the names that match `include` (all, when it is empty) and not `ignore`."""
    return [
        name
        for name in names
        if (not include or _matches(name, include)) and not _matches(name, ignore)
    ]


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(_match(name, pattern) for pattern in patterns)


def _match(name: str, pattern: str) -> bool:
    if not pattern.startswith("re:"):
        return fnmatchcase(name, pattern)
    try:
        return re.search(pattern[3:], name) is not None
    except re.error as error:
        raise RecipeError(
            f"pattern '{pattern}' | is not a regular expression: {error}"
        ) from error
