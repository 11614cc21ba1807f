"""Masks read off the zeros of a model's own weights.

N: out features. K: in features.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from numpy.typing import NDArray

from patch_compile.io.onnx_model import open_rows
from patch_compile.io.stored_weight import StoredWeight, in_order
from patch_compile.tiles.geometry import Geometry
from patch_compile.tiles.inspect import nonzero, tile_counts
from patch_compile.tiles.masks import Masks
from patch_compile.tiles.pattern import pack_keep
from patch_compile.tiles.weight_mask import WeightMask

__all__ = ["infer_mask", "infer_masks"]


Progress = Callable[[int, int, str], None]

_WORKERS = min(4, os.cpu_count() or 1)


def infer_masks(
    weights: Sequence[tuple[str, StoredWeight]],
    geometry: Geometry,
    progress: Progress | None = None,
) -> Masks:
    """Infers the mask of every named weight, several at once; see `infer_mask`.

    Args:
        weights: names and weights.
        geometry: of the tiles.
        progress: called with (weights done, weights in all, what).
    """
    made: dict[str, WeightMask] = {}
    with ThreadPoolExecutor(_WORKERS) as pool:
        for mask in pool.map(lambda named: infer_mask(named[0], named[1], geometry), weights):
            made[mask.name] = mask
            if progress is not None:
                progress(len(made), len(weights), "inferring masks")
    return Masks(made, {"method": "infer", "tile": str(geometry)})


def infer_mask(name: str, weight: StoredWeight, geometry: Geometry) -> WeightMask:
    """Takes the non-zeros of a weight for its keep mask.

    A tile is sparse when each of its groups of 4 along K holds at most two non-zeros.
    """
    grid = geometry.grid(weight.shape)
    bits = open_rows(weight.tensor)
    fullest, _ = tile_counts(bits, grid, transposed=weight.transposed)
    return WeightMask(
        name, grid, fullest > 2, partial(_keep_bits, weight), geometry=str(geometry)
    )


def _keep_bits(weight: StoredWeight) -> NDArray[np.uint8]:
    n, k = weight.shape
    bits = np.empty((n, -(-k // 8)), np.uint8)
    at = 0
    for strip in in_order(open_rows(weight.tensor), None, multiple=8):
        if weight.transposed:
            packed = _packed_down(nonzero(strip))
            bits[:, at // 8 : at // 8 + packed.shape[0]] = packed.T
        else:
            bits[at : at + strip.shape[0]] = pack_keep(nonzero(strip))
        at += strip.shape[0]
    return bits


def _packed_down(flags: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Packs bool (k, n) into uint8 (ceil(k/8), n), low bit first: whole rows at a time."""
    packed = flags[0::8].astype(np.uint8)
    for lane in range(1, 8):
        rows = flags[lane::8].view(np.uint8)
        packed[: rows.shape[0]] |= rows << np.uint8(lane)
    return packed
