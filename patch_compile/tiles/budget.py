"""Which tiles go 2:4 so that the whole model meets one budget.

A budget counts what tiles gain by going 2:4: zeros, for a sparsity, or predicted time.
Sparsity is the share of zeros among all weights of the prunable linears; a 2:4 tile is half
zeros, so a model whose tiles are all sparse has sparsity 0.5.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patch_compile.errors import RecipeError

__all__ = ["choose_sparse_tiles"]


def choose_sparse_tiles(
    scores: Sequence[NDArray[Any]],
    gains: Sequence[NDArray[Any]],
    target: float,
    groups: Sequence[NDArray[Any]] | None = None,
) -> list[NDArray[np.bool_]]:
    """Picks the tiles of least score per gain until they gain `target`.

    The tile that would cross the target is taken only if that ends nearer to it, so the
    result is within half of one tile.

    Args:
        scores: for each weight, float (R, C), the loss increase if the tile goes 2:4.
        gains: for each weight, numbers (R, C), what a tile gains by going 2:4, in zeros or
            microseconds; tiles that gain nothing are never picked.
        target: gain wanted over all weights.
        groups: for each weight, integers (R, C) from 0: tiles of one number, in whatever
            weight, go together; None lets every tile go alone.

    Returns:
        For each weight, bool (R, C), True where the tile goes 2:4.
    """
    # Float64 holds counts of zeros exactly.
    flat_gains = np.concatenate([gain.ravel() for gain in gains]).astype(np.float64)
    flat_scores = np.concatenate([s.ravel() for s in scores]).astype(np.float64)
    if not np.isfinite(flat_scores).all():
        raise RecipeError(
            "tile scores | hold NaN or Inf; look for overflow in the calibration"
        )
    if groups is None:
        chosen = _cheapest(flat_scores, flat_gains, target)
    else:
        group = np.concatenate([g.ravel() for g in groups])
        summed = _sums(group, flat_scores), _sums(group, flat_gains)
        chosen = _cheapest(*summed, target)[group]
    parts = np.split(chosen, np.cumsum([gain.size for gain in gains])[:-1])
    return [part.reshape(gain.shape) for part, gain in zip(parts, gains, strict=True)]


def _sums(group: NDArray[Any], values: NDArray[Any]) -> NDArray[np.float64]:
    return np.bincount(group, values).astype(np.float64)


def _cheapest(
    scores: NDArray[np.float64], gains: NDArray[np.float64], target: float
) -> NDArray[np.bool_]:
    worth = np.flatnonzero(gains > 0)
    order = worth[np.argsort(scores[worth] / gains[worth], kind="stable")]
    count = _nearest(np.cumsum(gains[order]), target)
    chosen = np.zeros(gains.size, np.bool_)
    chosen[order[:count]] = True
    return chosen


def _nearest(reached: NDArray[np.float64], target: float) -> int:
    """How many of the tiles, in order, end nearest to the target."""
    count = int(np.searchsorted(reached, target, side="right"))
    if count == reached.size:
        return count
    below = float(reached[count - 1]) if count else 0.0
    return count + 1 if reached[count] - target < target - below else count
