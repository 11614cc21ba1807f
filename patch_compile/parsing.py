"""JSON that a stranger may have written."""

import json
from collections.abc import Callable, Iterable
from typing import Any

__all__ = ["DAMAGE", "parse_json"]

# What comes out of a reader that meets data of another form than it expects.
DAMAGE = (OSError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError)

# Nothing of ours is nested deeper than 10, and writing deep data again needs a deep stack.
_DEPTH = 64


def parse_json(text: str, constants: Callable[[str], Any] | None = None) -> Any:
    """Reads JSON, and raises a ValueError whatever is wrong with it.

    Args:
        text: the JSON.
        constants: makes a value of `NaN`, `Infinity` and `-Infinity`; None makes floats.

    Raises:
        ValueError: if it is no JSON, is nested too deeply, or holds half of a surrogate pair,
            which no file and no terminal takes.
    """
    try:
        data = json.loads(text, parse_constant=constants)
    except RecursionError as error:
        raise ValueError(f"it is nested more than {_DEPTH} deep") from error
    level = [data]
    for _ in range(_DEPTH):
        level = [inner for value in level for inner in _inside(value)]
        if not level:
            return data
    raise ValueError(f"it is nested more than {_DEPTH} deep")


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, str):
        # Raises a UnicodeEncodeError, which is a ValueError.
        value.encode()
        return ()
    if isinstance(value, dict):
        return (*value, *value.values())
    return value if isinstance(value, list) else ()
