"""What every recipe checks of its own fields."""

from dataclasses import fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from patch_compile.errors import RecipeError

__all__ = ["check_kinds", "within"]


def check_kinds(recipe: Any) -> None:
    """Checks words against their choices, and lists: a str is no list of patterns."""
    hints = get_type_hints(type(recipe))
    for field in fields(recipe):
        name, value, kind = field.name, getattr(recipe, field.name), hints[field.name]
        several = get_origin(kind) is tuple
        if several and not isinstance(value, tuple):
            raise RecipeError(f"{name} | is {value!r}; expected a tuple")
        choices = _choices(kind)
        for word in value if several else (value,):
            if choices and word not in choices:
                expected = ", ".join(str(choice) for choice in choices if choice is not None)
                raise RecipeError(f"{name} | is {word!r}; expected one of {expected}")


def _choices(kind: Any) -> tuple[Any, ...]:
    """Returns what a Literal, or one or None, or each of several can be; else nothing."""
    parts = (kind,) if get_origin(kind) is Literal else get_args(kind)
    words = [word for part in parts if get_origin(part) is Literal for word in get_args(part)]
    return (*words, None) if words and type(None) in parts else tuple(words)


def within(name: str, value: float, low: float, high: float) -> None:
    """Raises unless low <= value <= high."""
    # Written so that NaN fails too.
    if not low <= value <= high:
        raise RecipeError(f"{name} | is {value}; expected a number from {low} to {high}")
