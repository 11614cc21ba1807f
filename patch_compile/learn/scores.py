"""What ranks the weights of a group of 4, and what a weight costs when it goes.

A one-shot method is one small function in one of the two tables. N: out features. K: in
features.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from patch_compile.recipe import LearnRecipe

__all__ = ["COSTS", "SALIENCIES", "Evidence", "needs_fisher", "needs_moments"]

Values = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Evidence:
    """What is known of one weight.

    Attributes:
        weight: float32 (N, K).
        moment: float64 (K,), the sum over tokens of x^2, or None if nobody needs it.
        fisher: float32 (N, K), the sum over windows of g^2, or None if nobody needs it.
    """

    weight: Values
    moment: NDArray[np.float64] | None = None
    fisher: Values | None = None


def _magnitude(evidence: Evidence) -> Values:
    """|w|."""
    return np.abs(evidence.weight)


def _wanda(evidence: Evidence) -> Values:
    """|w| * ||x||_2: Wanda, arXiv 2306.11695, equation 1."""
    assert evidence.moment is not None
    return np.abs(evidence.weight) * np.sqrt(evidence.moment).astype(np.float32)


def _fisher(evidence: Evidence, _saliency: Values) -> Values:
    """g^2 w^2: the diagonal second-order loss increase of zeroing w, times 2."""
    assert evidence.fisher is not None
    return evidence.fisher * np.square(evidence.weight)


def _error(_evidence: Evidence, saliency: Values) -> Values:
    """The squared saliency; for Wanda, w's part of the squared error of the layer's output."""
    return np.square(saliency)


# Float32 (N, K): the larger, the rather a weight is kept.
SALIENCIES: Mapping[str, Callable[[Evidence], Values]] = {
    "magnitude": _magnitude,
    "wanda": _wanda,
}

# From the evidence and the saliency, float32 (N, K): what zeroing each weight costs.
COSTS: Mapping[str, Callable[[Evidence, Values], Values]] = {
    "fisher": _fisher,
    "error": _error,
}


def needs_moments(recipe: LearnRecipe) -> bool:
    """Tells whether the model must be run forward to rank weights."""
    return recipe.saliency == "wanda"


def needs_fisher(recipe: LearnRecipe) -> bool:
    """Tells whether the model must be run backward to rank tiles."""
    if recipe.method == "leap":
        return False
    return recipe.ranking == "fisher" or (
        recipe.ranking == "learned" and recipe.tile_start == "fisher"
    )
