"""Options that nothing would read are refused: who gave them expects something of them."""

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from patch_compile.errors import RecipeError

__all__ = ["refuse_given", "refuse_unused"]


def refuse_unused(recipe: Any, switch: str, names: Iterable[str] | None = None) -> None:
    """Refuses options of a recipe that differ from their defaults and wait for another.

    Args:
        recipe: a dataclass whose fields all have defaults.
        switch: the field that is not given, and without which the others are not read.
        names: of the others; by default all of the recipe.

    Raises:
        RecipeError: if one is given.
    """
    defaults, wanted = type(recipe)(), f"--{_option(switch)}"
    for name in names if names is not None else [field.name for field in fields(recipe)]:
        if name != switch and getattr(recipe, name) != getattr(defaults, name):
            raise RecipeError(
                f"{_option(name)} | is given, and without {wanted} nothing reads it; give "
                f"{wanted} as well, or leave it out"
            )


def refuse_given(switch: str, why: str, **given: bool) -> None:
    """Refuses options that go with another way to run the verb.

    Args:
        switch: the option that is given.
        why: nothing reads the others then.
        given: whether each of the others is.

    Raises:
        RecipeError: if one is.
    """
    for name in (name for name, there in given.items() if there):
        raise RecipeError(
            f"{_option(name)} | is given with --{switch}, which {why}; leave one of them out"
        )


def _option(name: str) -> str:
    return name.replace("_", "-")
