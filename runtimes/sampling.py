"""Which token comes next. V: size of the vocabulary."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from patch_compile.recipe import GenerateRecipe

__all__ = ["next_token", "probabilities"]


def next_token(logits: NDArray[Any], recipe: GenerateRecipe, draw: float) -> int:
    """Chooses a token.

    Args:
        logits: float (V,).
        recipe: how to choose.
        draw: a uniform random number in [0, 1), which a greedy choice leaves unused.
    """
    if not recipe.draws:
        return int(logits.argmax())
    sums = probabilities(logits, recipe).cumsum()
    # Rounding may leave the last sum short of 1; scaled, no draw falls behind it.
    return int(np.searchsorted(sums, draw * sums[-1], side="right"))


def probabilities(logits: NDArray[Any], recipe: GenerateRecipe) -> NDArray[np.float64]:
    """Returns the distribution (V,) that tokens are drawn from.

    Temperature first, then the k likeliest, then the fewest that have the share p of what
    those have: the order of transformers' `generate`.

    Args:
        logits: float (V,); finite, or -inf for what never comes.
        recipe: what to leave out.
    """
    scaled = logits.astype(np.float64) / (recipe.temperature or 1.0)
    # Likeliest first; equals in the order of the vocabulary.
    order = np.argsort(-scaled, kind="stable")[: recipe.top_k]
    shares = np.exp(scaled[order] - scaled[order[0]])
    shares /= shares.sum()
    if recipe.top_p is not None:
        # A token stays while those before it have less than p; the first always does.
        shares[shares.cumsum() - shares >= recipe.top_p] = 0.0
        shares /= shares.sum()
    found = np.zeros(len(logits))
    found[order] = shares
    return found
