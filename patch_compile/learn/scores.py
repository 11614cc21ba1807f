"""What ranks the weights of a group of 4, and what a weight costs when it goes.

A one-shot method is one small function in one of the two tables. N: out features. K: in
features.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from patch_compile.learn.descent import descend, kept_first
from patch_compile.learn.obs import TwoOfFour, inverse_factor, prune_columns, residuals
from patch_compile.recipe import LearnRecipe
from patch_compile.tiles.pattern import top2_of_4

__all__ = [
    "COSTS",
    "FREE_SALIENCIES",
    "SALIENCIES",
    "Evidence",
    "needs_fisher",
    "needs_grams",
    "needs_moments",
]

Values = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Evidence:
    """What is known of one weight.

    Attributes:
        weight: float32 (N, K).
        moment: float64 (K,), the sum over tokens of x^2, or None if nobody needs it.
        fisher: float32 (N, K), the sum over windows of g^2, or None if nobody needs it.
        gram: float32 (K, K), the sum over tokens of x x^T, or None if nobody needs it.
    """

    weight: Values
    moment: NDArray[np.float64] | None = None
    fisher: Values | None = None
    gram: Values | None = None


def _magnitude(evidence: Evidence) -> Values:
    """|w|."""
    return np.abs(evidence.weight)


def _wanda(evidence: Evidence) -> Values:
    """|w| * ||x||_2: Wanda, arXiv 2306.11695, equation 1."""
    assert evidence.moment is not None
    return np.abs(evidence.weight) * np.sqrt(evidence.moment).astype(np.float32)


def _sparsegpt(evidence: Evidence) -> Values:
    """|w| * r, w as SparseGPT has moved it when it comes to w's group of four.

    The new weights are dropped, the choice is kept: a weight's neighbours count as they would
    be by then, not as they are.
    """
    assert evidence.gram is not None
    nowhere = np.zeros(evidence.weight.shape, np.bool_)
    factor = inverse_factor(evidence.gram)
    return np.sqrt(prune_columns(evidence.weight, factor, TwoOfFour(nowhere)).cost)


def _descent(evidence: Evidence) -> Values:
    """Wanda's saliencies, handed out anew in each group so that `descend`'s mask is best."""
    assert evidence.gram is not None
    saliency = np.abs(evidence.weight) * np.sqrt(evidence.gram.diagonal())
    keep = descend(evidence.weight, evidence.gram, top2_of_4(saliency))
    return kept_first(saliency, keep)


def _surgeon(evidence: Evidence) -> Values:
    """|w| * r, w as it is, where there is no group that a choice could be left for."""
    assert evidence.gram is not None
    return np.abs(evidence.weight) * residuals(evidence.gram)


def _fisher(evidence: Evidence, _saliency: Values) -> Values:
    """g^2 w^2: the diagonal second-order loss increase of zeroing w, times 2."""
    assert evidence.fisher is not None
    return evidence.fisher * np.square(evidence.weight)


def _error(_evidence: Evidence, saliency: Values) -> Values:
    """The squared saliency: w's part of the squared error of the layer's output.

    For SparseGPT, of what other weights could not make up for; for magnitude, of inputs of
    one size.
    """
    return np.square(saliency)


# Float32 (N, K): the larger, the rather a weight is kept.
SALIENCIES: Mapping[str, Callable[[Evidence], Values]] = {
    "magnitude": _magnitude,
    "wanda": _wanda,
    "sparsegpt": _sparsegpt,
    "descent": _descent,
}

# The same where zeros may be anywhere.
FREE_SALIENCIES: Mapping[str, Callable[[Evidence], Values]] = {
    "magnitude": _magnitude,
    "wanda": _wanda,
    "sparsegpt": _surgeon,
}

# From the evidence and the saliency, float32 (N, K): what zeroing each weight costs.
COSTS: Mapping[str, Callable[[Evidence, Values], Values]] = {
    "fisher": _fisher,
    "error": _error,
}


def needs_moments(recipe: LearnRecipe) -> bool:
    """Tells whether the sizes of the inputs are needed to rank weights."""
    return recipe.saliency == "wanda"


def needs_grams(recipe: LearnRecipe) -> bool:
    """Tells whether the inputs' products are needed to rank weights."""
    return recipe.saliency in ("sparsegpt", "descent")


def needs_fisher(recipe: LearnRecipe) -> bool:
    """Tells whether the model must be run backward to rank tiles."""
    if recipe.free:
        return False
    return recipe.ranking == "fisher" or (
        recipe.ranking == "learned" and recipe.tile_start == "fisher"
    )
