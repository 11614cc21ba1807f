"""A promise of predicted time, in one line."""

import re

from patch_compile.errors import RecipeError
from patch_compile.recipe.compiling import CompileRecipe

__all__ = ["promise_of"]

_FORM = (
    "time:TIMESx@TARGET:TOKENS, as in time:1.25x@a100-bf16:16 or "
    "time:1.25x@a100-bf16:16:0.9,2048:0.1"
)


def promise_of(budget: str) -> CompileRecipe:
    """Reads `time:TIMESx@TARGET:TOKENS` as what a compiler is asked for the same.

    Args:
        budget: how many times as fast as dense, the target, and its tokens with their shares
            of the time, as `CompileRecipe` takes each.

    Raises:
        RecipeError: if it is none, or no number of 1 or more.
    """
    found = re.fullmatch(r"time:([^@:]+)@([^@:]+):([^@]+)", budget)
    if found is None:
        raise RecipeError(f"budget | is '{budget}'; expected {_FORM}")
    tokens = tuple(found[3].split(","))
    return CompileRecipe(speedup=found[1], target=found[2], tokens=tokens)
