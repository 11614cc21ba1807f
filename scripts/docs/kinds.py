"""Types of options in words."""

import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

__all__ = ["default_words", "kind_words"]

_WORDS = {int: "integer", float: "number", str: "text", Path: "path", bool: "yes or no"}


def kind_words(hint: Any) -> str:
    """Returns Markdown for a type: `tuple[int, ...]` is a list of integers."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(f"`{part}`" for part in parts)
    if origin in (Union, types.UnionType):
        return " or ".join(kind_words(part) for part in parts if part is not type(None))
    if origin is tuple and Ellipsis in parts:
        return _several(parts[0])
    if origin is tuple:
        return f"{len(parts)} {_WORDS[parts[0]]}s"
    return _WORDS[hint]


def _several(part: Any) -> str:
    if get_origin(part) is Literal:
        return "any of " + ", ".join(f"`{word}`" for word in get_args(part))
    return "several texts" if part is str else f"several {_WORDS[part]}s"


def default_words(value: Any) -> str:
    """Returns Markdown for a default as it is typed: `1,512,2048`, none for an empty list."""
    if value is None or value == ():
        return "none"
    if isinstance(value, tuple):
        return f"`{','.join(str(part) for part in value)}`"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"`{value}`"
