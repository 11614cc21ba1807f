"""How many sequences of how many tokens a run of a model works on, by the shapes it takes."""

import math
from collections.abc import Callable, Mapping

from patch_compile.errors import RecipeError

__all__ = ["Shapes", "check_sizes", "sizes_of"]

Shape = tuple[int, ...]

# Of a batch and a number of tokens, the shape of every input by its name.
Shapes = Callable[[int, int], Mapping[str, Shape]]


def sizes_of(shapes: Shapes, batch: int, tokens: int) -> tuple[int, int]:
    """Returns the batch and the tokens that a model really runs, where others are asked.

    A model follows if both change its shapes, or if it has fixed ones of so many tokens.

    Args:
        shapes: of the model's inputs.
        batch: sequences that are asked for.
        tokens: of each.
    """
    here = shapes(batch, tokens)
    follows = shapes(batch + 1, tokens) != here != shapes(batch, tokens + 1)
    known = {name: shape for name, shape in here.items() if len(shape) > 1}
    if follows or not known or any(_rows(*item) == batch * tokens for item in known.items()):
        return batch, tokens
    name = "input_ids" if "input_ids" in known else next(iter(known))
    shape = known[name]
    return (shape[0], shape[1]) if _counts(name, shape) else (1, shape[0])


def check_sizes(subject: str, shapes: Shapes, batch: int, tokens: int) -> None:
    """Refuses sizes that a model would not run, whatever its times were called.

    Raises:
        RecipeError: if it runs others.
    """
    found = sizes_of(shapes, batch, tokens)
    if found != (batch, tokens):
        raise RecipeError(
            f"tokens | are {tokens} at batch {batch}, but {subject} runs {found[1]} at batch "
            f"{found[0]}, by its fixed shapes {[*shapes(batch, tokens).values()]}; give its "
            "own numbers, or export it with dynamic axes"
        )


def _rows(name: str, shape: Shape) -> int:
    """Returns how many tokens an input holds in all."""
    return math.prod(shape[:2] if _counts(name, shape) else shape[:1])


def _counts(name: str, shape: Shape) -> bool:
    """Whether the first two axes are batch and tokens: else the first has all tokens."""
    return len(shape) > 2 or name in ("input_ids", "attention_mask", "position_ids")
