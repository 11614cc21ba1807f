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

__all__ = ["computed_sparse", "tile_map", "touched"]

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
        _runs(grid.rows),
        _runs(grid.columns),
        _bits(~dense),
        _bits(computed_sparse(grid, pieces)),
    )


def computed_sparse(grid: TileGrid, pieces: Sequence[Piece]) -> NDArray[np.bool_]:
    """Marks the tiles, bool (R, C), that 2:4 pieces hold whole."""
    held = np.zeros(grid.tiles, np.bool_)
    for piece in pieces:
        if piece.role == "sparse24":
            held |= np.outer(
                _within(grid.rows, piece.rows), _within(grid.columns, piece.columns)
            )
    return held


def _within(edges: Sequence[int], spans: Sequence[Span]) -> NDArray[np.bool_]:
    starts, stops = np.array(edges[:-1]), np.array(edges[1:])
    held = np.zeros(starts.size, np.bool_)
    for start, stop in spans:
        held |= (starts >= start) & (stops <= stop)
    return held


def touched(grid: TileGrid, pieces: Sequence[Piece], start: int) -> NDArray[np.bool_]:
    """Marks the tiles, bool (R, C), that a 2:4 piece holds any of.

    Args:
        grid: the cut of some rows of a weight into tiles.
        pieces: what the weight becomes.
        start: the first of those rows.
    """
    rows = [start + edge for edge in grid.rows]
    found = np.zeros(grid.tiles, np.bool_)
    for piece in pieces:
        if piece.role == "sparse24":
            found |= np.outer(_meets(rows, piece.rows), _meets(grid.columns, piece.columns))
    return found


def _meets(edges: Sequence[int], spans: Sequence[Span]) -> NDArray[np.bool_]:
    edge, (starts, stops) = np.array(edges), np.array(spans).T
    # A span that stops before a tile starts, or starts after it stops, does not meet it.
    met: NDArray[np.bool_] = np.any(
        (edge[:-1, None] < stops) & (edge[1:, None] > starts), axis=1
    )
    return met


def _bits(flags: NDArray[np.bool_]) -> str:
    return b64encode(np.packbits(flags).tobytes()).decode()


def _runs(edges: Sequence[int]) -> str:
    """Sizes from edges, equal neighbours counted: `31*128,1*64`."""
    sizes = np.diff(edges).tolist()
    return ",".join(f"{len(list(run))}*{size}" for size, run in groupby(sizes))
