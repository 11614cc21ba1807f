"""Numbers as they were typed, before the parser makes something of them."""

import re
from collections.abc import Sequence
from typing import Any, get_args

from cyclopts import App, ArgumentCollection
from cyclopts.argument import Argument

from patch_compile.cli.arguments import shown
from patch_compile.errors import RecipeError

__all__ = ["check_numbers"]

# The parser rounds 8.6 to 9. What is whole, as 30.0 or 0x10, is let through to it.
_WHOLE = re.compile(r"[+-]?(\d[\d_]*(\.0*)?|0[xob][\da-f_]+)", re.IGNORECASE)
_KINDS = {int: "a whole number", float: "a number"}
_EXAMPLES = {"sm": "86 for compute capability 8.6"}
# Of options without a default.
_ANY = {int: "3", float: "0.25"}


def check_numbers(_app: App, _verb: Sequence[str], arguments: ArgumentCollection) -> None:
    """Refuses what is no number where one is expected; the parser calls it like a config.

    Raises:
        RecipeError: if an option that takes whole numbers is given a fraction, or one that
            takes numbers something else.
    """
    for argument in arguments:
        kind = _kind(argument.hint)
        if kind is None:
            continue
        for token in argument.tokens:
            # A flag has no text, and the parser knows what a null of a file is.
            typed = isinstance(token.value, str) and token.value
            if typed and token.value.lower() not in ("none", "null"):
                _check(argument, kind, token.value, token.source)


def _kind(hint: Any) -> Any:
    """Returns int or float where a type hint is one, one or None, or several; else None."""
    leaves = _leaves(hint) - {type(None), Ellipsis}
    return next(iter(leaves)) if len(leaves) == 1 and leaves <= _KINDS.keys() else None


def _leaves(hint: Any) -> set[Any]:
    inner = get_args(hint)
    return {leaf for part in inner for leaf in _leaves(part)} if inner else {hint}


def _check(argument: Argument, kind: type, value: str, source: str) -> None:
    if _is_whole(value) if kind is int else _is_number(value):
        return
    name = argument.name.lstrip("-")
    default = argument.field_info.default
    usual = shown(default) if isinstance(default, int | float | tuple) else None
    example = _EXAMPLES.get(name) or usual or _ANY[kind]
    where = "" if source in ("", "cli") else f" in '{source}'"
    raise RecipeError(
        f"{name} | is '{value}'{where}; expected {_KINDS[kind]}, as in {example}"
    )


def _is_whole(value: str) -> bool:
    return _WHOLE.fullmatch(value.strip()) is not None


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True
