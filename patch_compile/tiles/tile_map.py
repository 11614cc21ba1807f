"""Tile maps as short text: what a report keeps of a mask and of its plan.

R, C: tiles along N and K.
"""

from base64 import b64encode
from collections.abc import Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from patch_compile.report import TileMap
from patch_compile.tiles.geometry import TileGrid
from patch_compile.tiles.plan import Piece, Span

__all__ = ["tile_map"]

# 8 KB a bit map: a weight of 32,768 x 32,768 in tiles of 128 x 128.
_MOST_TILES = 65_536


def tile_map(
    grid: TileGrid, dense: NDArray[np.bool_], pieces: Sequence[Piece]
) -> TileMap | None:
    """Returns a weight's tile map, or None where it is too fine to be looked at.

    Args:
        grid: the cut into tiles.
        dense: bool (R, C), the tiles that the mask leaves dense.
        pieces: what the weight becomes.
    """
    if dense.size > _MOST_TILES:
        return None
    return TileMap(
        _runs(grid.rows), _runs(grid.columns), _bits(~dense), _computed(grid, pieces)
    )


def _computed(grid: TileGrid, pieces: Sequence[Piece]) -> str:
    """Marks the tiles that 2:4 pieces hold whole."""
    held = np.zeros(grid.tiles, np.bool_)
    for piece in pieces:
        if piece.role == "sparse24":
            held |= np.outer(
                _within(grid.rows, piece.rows), _within(grid.columns, piece.columns)
            )
    return _bits(held)


def _within(edges: Sequence[int], spans: Sequence[Span]) -> NDArray[np.bool_]:
    starts, stops = np.array(edges[:-1]), np.array(edges[1:])
    held = np.zeros(starts.size, np.bool_)
    for start, stop in spans:
        held |= (starts >= start) & (stops <= stop)
    return held


def _bits(flags: NDArray[np.bool_]) -> str:
    return b64encode(np.packbits(flags).tobytes()).decode()


def _runs(edges: Sequence[int]) -> str:
    """Sizes from edges, equal neighbours counted: `31*128,1*64`."""
    sizes = np.diff(edges).tolist()
    return ",".join(f"{len(list(run))}*{size}" for size, run in groupby(sizes))
