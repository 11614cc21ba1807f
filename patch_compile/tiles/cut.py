"""Masks of a lower sparsity from masks of a higher one.

A method ranks tiles once; which of them go 2:4 is then a matter of the budget alone. So every
method first makes masks whose tiles are all 2:4, with their scores, and cuts from those.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patch_compile.errors import MaskError
from patch_compile.tiles.budget import choose_sparse_tiles
from patch_compile.tiles.masks import Masks
from patch_compile.tiles.pattern import pack_keep
from patch_compile.tiles.weight_mask import WeightMask

__all__ = ["cut_masks", "cut_to", "relaxed"]


def cut_masks(masks: Masks, sparsity: float) -> Masks:
    """Makes tiles dense, dearest first, until the masks have `sparsity`, to half a tile.

    Args:
        masks: with scores; their 2:4 tiles are the candidates, dense tiles stay dense.
        sparsity: zeros over all weights, 0 to the masks' own.

    Raises:
        MaskError: if a weight has no scores, or the masks have fewer zeros than wanted.
    """
    weights = masks.weights.values()
    # K and tile widths are multiples of 4: half of a tile is a whole number of zeros.
    zeros = {mask.name: np.where(mask.dense, 0, mask.grid.areas // 2) for mask in weights}
    most, total = _total(zeros.values()), _total(mask.grid.areas for mask in weights)
    target = round(sparsity * total)
    if target > most:
        raise MaskError(
            f"sparsity | is {sparsity:.2%}, the masks have {most / max(1, total):.2%}; a cut "
            "only lowers it: choose less, or learn masks of more"
        )
    return cut_to(masks, zeros, target)


def cut_to(masks: Masks, gains: Mapping[str, NDArray[Any]], target: float) -> Masks:
    """Makes tiles dense, dearest first, until those that stay 2:4 gain `target`.

    Args:
        masks: with scores.
        gains: of every weight, numbers (R, C): what each tile gains by being 2:4, zeros or
            predicted microseconds; 0 for tiles that are or shall be dense.
        target: the sum of the gains that is wanted.

    Raises:
        MaskError: if a weight has no scores.
    """
    weights = list(masks.weights.values())
    unscored = [mask.name for mask in weights if mask.scores is None]
    if unscored:
        raise MaskError(f"weight '{unscored[0]}' | has no scores to cut by; learn it again")
    scores, gained = [_scores(m) for m in weights], [gains[m.name] for m in weights]
    sparse = choose_sparse_tiles(scores, gained, target, _groups(weights))
    chosen = [relaxed(*pair) for pair in zip(weights, sparse, strict=True)]
    return Masks({mask.name: mask for mask in chosen}, masks.made_by)


def _total(counts: Iterable[NDArray[Any]]) -> int:
    return sum(int(count.sum()) for count in counts)


def _scores(mask: WeightMask) -> NDArray[np.float32]:
    assert mask.scores is not None
    return mask.scores


def _groups(weights: list[WeightMask]) -> list[NDArray[Any]] | None:
    """Numbers the tiles so that tied ones share a number; None if no tile is tied."""
    if all(mask.ties is None for mask in weights):
        return None
    start = 1 + max(int(mask.ties.max()) for mask in weights if mask.ties is not None)
    groups: list[NDArray[Any]] = []
    for mask in weights:
        if mask.ties is not None:
            groups.append(mask.ties)
            continue
        groups.append(np.arange(start, start + mask.dense.size).reshape(mask.dense.shape))
        start += mask.dense.size
    return groups


def relaxed(mask: WeightMask, sparse: NDArray[np.bool_]) -> WeightMask:
    """Returns the mask with all tiles dense, and unpruned, but those of `sparse` (R, C)."""
    dense = ~sparse
    if np.array_equal(dense, mask.dense):
        return mask

    # Made when they are read: a plan needs none, and a large model's are gigabytes unpacked.
    def bits() -> NDArray[np.uint8]:
        return pack_keep(mask.keep() | mask.grid.expand(dense))

    return replace(mask, dense=dense, bits=bits)
