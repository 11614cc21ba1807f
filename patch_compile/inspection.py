"""What 2:4 structure the weights of any ONNX model already have.

N: out features. K: in features.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from patch_compile.io.onnx_model import load_model, open_rows
from patch_compile.passes.pipeline import inline
from patch_compile.passes.sites import Site, find_sites
from patch_compile.tiles.geometry import Geometry
from patch_compile.tiles.inspect import tile_counts

__all__ = ["Inspection", "WeightInspection", "inspect_model"]

_WORKERS = min(4, os.cpu_count() or 1)


@dataclass(frozen=True, eq=False)
class WeightInspection:
    """One weight.

    Attributes:
        weight: the initializer's name.
        parameter: its name in the source model, as far as the graph tells.
        shape: (N, K).
        dtype: the stored element type.
        zeros: share of zeros, 0 to 1.
        eligible: the whole tensor is 2:4 along K, K a multiple of 4: what TensorRT asks.
        sparse_tiles: bool (R, C), the tiles that are 2:4.
    """

    weight: str
    parameter: str
    shape: tuple[int, int]
    dtype: str
    zeros: float
    eligible: bool
    sparse_tiles: NDArray[np.bool_]

    def to_json(self) -> dict[str, object]:
        """Returns plain data; the tile map as rows of `#` (2:4) and `.` (dense)."""
        rows = ["".join("#" if tile else "." for tile in row) for row in self.sparse_tiles]
        return {
            "weight": self.weight,
            "parameter": self.parameter,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "zeros": self.zeros,
            "eligible": self.eligible,
            "sparse_tile_share": float(self.sparse_tiles.mean()),
            "tile_map": rows,
        }


@dataclass(frozen=True)
class Inspection:
    """All weights that products multiply by, and those that could not be looked at."""

    weights: tuple[WeightInspection, ...]
    left_alone: dict[str, str]


def inspect_model(
    model: str | Path | ir.Model,
    tile: str = "128x128",
    progress: Callable[[int, int, str], None] | None = None,
) -> Inspection:
    """Counts zeros and finds 2:4 tiles in every constant weight of a model.

    Args:
        model: path of an .onnx file, or a model in memory.
        tile: the geometry of the tile maps.
        progress: called with (weights done, weights in all, what).

    Raises:
        ModelError: if the model cannot be read.
        RecipeError: if the geometry is none.
    """
    geometry = Geometry.parse(tile)
    graph = model if isinstance(model, ir.Model) else load_model(Path(model))
    inline(graph)
    sites, refusals = find_sites(graph, compiled=True)
    found = []
    with ThreadPoolExecutor(_WORKERS) as pool:
        for weight in pool.map(lambda site: _inspect(site, geometry), sites):
            found.append(weight)
            if progress is not None:
                progress(len(found), len(sites), "inspecting")
    return Inspection(tuple(found), {refusal.name: refusal.reason for refusal in refusals})


def _inspect(site: Site, geometry: Geometry) -> WeightInspection:
    weight = site.weight
    n, k = weight.shape
    bits = open_rows(weight.tensor)
    fullest, zeros = tile_counts(bits, geometry.grid((n, k)), transposed=weight.transposed)
    sparse = fullest <= 2
    return WeightInspection(
        weight=site.name,
        parameter=site.label,
        shape=(n, k),
        dtype=weight.tensor.dtype.name.lower(),
        zeros=zeros / (n * k),
        eligible=bool(sparse.all()) and k % 4 == 0,
        sparse_tiles=sparse,
    )
