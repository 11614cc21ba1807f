"""Which tiles go 2:4 so that the whole model meets one sparsity.

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
    zeros: Sequence[NDArray[Any]],
    target: int,
    groups: Sequence[NDArray[Any]] | None = None,
) -> list[NDArray[np.bool_]]:
    """Picks the tiles of least score per zero until `target` zeros are reached.

    The tile that would cross the target is taken only if that ends nearer to it, so the
    result is within half of one tile.

    Args:
        scores: for each weight, float (R, C), the loss increase if the tile goes 2:4.
        zeros: for each weight, integers (R, C), the zeros a tile gains by going 2:4.
        target: zeros wanted over all weights.
        groups: for each weight, integers (R, C) from 0: tiles of one number, in whatever
            weight, go together; None lets every tile go alone.

    Returns:
        For each weight, bool (R, C), True where the tile goes 2:4.
    """
    flat_zeros = np.concatenate([z.ravel() for z in zeros]).astype(np.int64)
    flat_scores = np.concatenate([s.ravel() for s in scores]).astype(np.float64)
    if not np.isfinite(flat_scores).all():
        raise RecipeError(
            "tile scores | hold NaN or Inf; look for overflow in the calibration"
        )
    if groups is None:
        chosen = _cheapest(flat_scores, flat_zeros, target)
    else:
        group = np.concatenate([g.ravel() for g in groups])
        # Sums in float64 hold counts of zeros exactly.
        summed = _sums(group, flat_zeros).astype(np.int64)
        chosen = _cheapest(_sums(group, flat_scores), summed, target)[group]
    parts = np.split(chosen, np.cumsum([z.size for z in zeros])[:-1])
    return [part.reshape(z.shape) for part, z in zip(parts, zeros, strict=True)]


def _sums(group: NDArray[Any], values: NDArray[Any]) -> NDArray[np.float64]:
    return np.bincount(group, values).astype(np.float64)


def _cheapest(
    scores: NDArray[np.float64], zeros: NDArray[np.int64], target: int
) -> NDArray[np.bool_]:
    order = np.argsort(scores / np.maximum(zeros, 1), kind="stable")
    order = order[zeros[order] > 0]
    count = _nearest(np.cumsum(zeros[order]), target)
    chosen = np.zeros(zeros.size, np.bool_)
    chosen[order[:count]] = True
    return chosen


def _nearest(reached: NDArray[np.int64], target: int) -> int:
    """How many of the tiles, in order, end nearest to the target."""
    count = int(np.searchsorted(reached, target, side="right"))
    if count == reached.size:
        return count
    below = int(reached[count - 1]) if count else 0
    return count + 1 if reached[count] - target < target - below else count
