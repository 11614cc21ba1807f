"""2:4 masks of least output error, by coordinate descent: what is lost cancels out.

Without the weights D = W * (1 - M) a layer's output is off by X D^T, and by the squared norm

    E(M) = sum over rows d of D: d H d^T,    H = X^T X.

Wanda (arXiv 2306.11695) takes H for its diagonal. Here one group of four after the other takes
the best of its six patterns while all other groups stay, until none wants to change: E never
rises, and at the end no group can lower it alone.

N: out features. K: in features. G: groups of a row, K / 4.
"""

from itertools import combinations

import numpy as np
from numpy.typing import NDArray

__all__ = ["descend", "kept_first"]

# Columns whose part of D H is kept up to date group by group; the rest follows in one product.
_BLOCK = 64

# Changes that gain less than this share of a group's own error are rounding.
_LEAST = 1e-4

_PAIRS = tuple(combinations(range(4), 2))

Values = NDArray[np.float32]


def descend(
    weight: Values, gram: Values, start: NDArray[np.bool_], sweeps: int = 8
) -> NDArray[np.bool_]:
    """Returns a 2:4 mask, bool (N, K), whose E is a local minimum or `sweeps` from `start`.

    Args:
        weight: W, float32 (N, K), K a multiple of 4.
        gram: H, float32 (K, K), symmetric.
        start: bool (N, K), two of every four along K.
        sweeps: most passes over all groups; the first few do nearly all.
    """
    # By columns, (K, N), which are read and written one at a time.
    columns = np.ascontiguousarray(weight.T)
    lost: Values = np.where(start.T, np.float32(0), columns)
    kept = np.array(start.T, order="C")
    slope = gram @ lost
    for _ in range(sweeps):
        changed = 0
        for first in range(0, len(columns), _BLOCK):
            block = slice(first, min(first + _BLOCK, len(columns)))
            before = lost[block].copy()
            changed += _sweep(
                columns[block], gram[block, block], slope[block], lost, kept, first
            )
            # Of the block's own columns too: what `_sweep` did to them was on a copy.
            slope += gram[:, block] @ (lost[block] - before)
        if not changed:
            break
    return np.ascontiguousarray(kept.T)


def _sweep(
    columns: Values,
    gram: Values,
    slope: Values,
    lost: Values,
    kept: NDArray[np.bool_],
    first: int,
) -> int:
    """Moves every group of a block to its best pattern; returns how many rows' groups moved.

    Args:
        columns: of the block, (b, N).
        gram: of the block, (b, b).
        slope: H D^T of the block, (b, N); not changed.
        lost: D^T, (K, N); its block is changed.
        kept: M^T, (K, N); its block is changed.
        first: column of the block.
    """
    # Kept up to date for the block alone.
    inner: Values = slope.copy()
    changed = 0
    for i in range(0, len(columns), 4):
        group = slice(i, i + 4)
        here = slice(first + i, first + i + 4)
        own = gram[group, group]
        # Slope without the group's own part: what all others leave it with.
        rest = inner[group] - own @ lost[here]
        moved, keep = _best(columns[group], own, rest, kept[here])
        if not moved.any():
            continue
        now = np.where(keep, np.float32(0), columns[group])
        inner += gram[:, group] @ (now - lost[here])
        lost[here], kept[here] = now, keep
        changed += int(moved.sum())
    return changed


def _best(
    weight: Values, own: Values, rest: NDArray[np.floating], kept: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Finds the pair whose loss costs least, in each row: who moves, (N,), and M^T, (4, N)."""
    alone = weight * (2 * rest + own.diagonal()[:, None] * weight)
    costs = np.stack(
        [alone[a] + alone[b] + 2 * own[a, b] * weight[a] * weight[b] for a, b in _PAIRS]
    )
    keeps = np.array([[place not in pair for place in range(4)] for pair in _PAIRS])
    current = (keeps[:, :, None] == kept).all(1).argmax(0)
    best = costs.argmin(0)
    rows = np.arange(weight.shape[1])
    gain = costs[current, rows] - costs[best, rows]
    moved = gain > _LEAST * np.abs(alone).max(0)
    return moved, keeps[np.where(moved, best, current)].T


def kept_first(saliency: Values, keep: NDArray[np.bool_]) -> Values:
    """Hands each group's own saliencies out anew, so that the best two are those of a mask.

    Args:
        saliency: float32 (N, K).
        keep: bool (N, K), two of every four along K.

    Returns:
        float32 (N, K), whose `top2_of_4` is `keep`, but where all that differ are equal.
    """
    groups = saliency.reshape(len(saliency), -1, 4)
    chosen = keep.reshape(groups.shape)
    order = np.lexsort((groups, chosen), axis=-1)
    made = np.empty_like(groups)
    np.put_along_axis(made, order, np.sort(groups, axis=-1), axis=-1)
    return made.reshape(saliency.shape)
