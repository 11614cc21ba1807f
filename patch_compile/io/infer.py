"""Masks read off the zeros of a model's own weights.

N: out features. K: in features.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from patch_compile.io.onnx_model import open_rows
from patch_compile.io.piece_tensor import StoredWeight
from patch_compile.tiles.geometry import Geometry
from patch_compile.tiles.inspect import nonzero, tile_counts
from patch_compile.tiles.masks import Masks
from patch_compile.tiles.pattern import pack_keep
from patch_compile.tiles.weight_mask import WeightMask

__all__ = ["infer_mask", "infer_masks"]


def infer_masks(weights: Sequence[tuple[str, StoredWeight]], geometry: Geometry) -> Masks:
    """Infers the mask of every named weight; see `infer_mask`."""
    made = {name: infer_mask(name, weight, geometry) for name, weight in weights}
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
    return pack_keep(np.ascontiguousarray(nonzero(weight.bits()).T))
