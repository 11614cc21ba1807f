"""A tile map says of every tile whether it is 2:4, and whether a 2:4 piece holds it."""

from base64 import b64decode

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from patch_compile.recipe import CompileRecipe
from patch_compile.report import TileMap
from patch_compile.tiles.geometry import Geometry, TileGrid
from patch_compile.tiles.plan import Piece
from patch_compile.tiles.planner import plan_weight
from patch_compile.tiles.tile_map import tile_map
from patch_compile.tiles.weight_mask import WeightMask, from_keep
from tests.support import geometries


def sizes(runs: str) -> list[int]:
    """Read by hand: `2*8,1*4` is 8, 8, 4."""
    found: list[int] = []
    for run in runs.split(","):
        number, size = run.split("*")
        found += [int(size)] * int(number)
    return found


def flags(text: str, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Read by hand: the highest bit of a byte is the first tile."""
    found = [byte >> (7 - i) & 1 for byte in b64decode(text) for i in range(8)]
    assert not any(found[shape[0] * shape[1] :])
    return np.array(found[: shape[0] * shape[1]], np.bool_).reshape(shape)


def made(mask: WeightMask, pieces: tuple[Piece, ...]) -> TileMap:
    found = tile_map(mask.grid, mask.dense, pieces)
    assert found is not None
    return found


@given(geometries(), st.integers(1, 40), st.integers(1, 10), st.integers(0, 2**32 - 1))
def test_every_tile_is_told_as_it_is(
    geometry: Geometry, n: int, groups: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    grid = geometry.grid((n, 4 * groups))
    dense = rng.random(grid.tiles) < 0.4
    keep = grid.expand(dense) | (np.arange(4 * groups) % 2 == 0)
    mask = from_keep("w", grid, dense, keep)
    plan = plan_weight("w", [mask], CompileRecipe(min_gain=0.0))
    found = made(mask, plan.pieces)
    assert np.cumsum([0, *sizes(found.rows)]).tolist() == list(grid.rows)
    assert np.cumsum([0, *sizes(found.columns)]).tolist() == list(grid.columns)
    np.testing.assert_array_equal(flags(found.sparse, grid.tiles), ~dense)
    held = np.zeros(grid.shape, np.bool_)
    for piece in plan.pieces:
        for top, bottom in piece.rows if piece.role == "sparse24" else ():
            for left, right in piece.columns:
                held[top:bottom, left:right] = True
    computed = flags(found.computed_sparse, grid.tiles)
    np.testing.assert_array_equal(grid.expand(computed), held)


def test_a_tile_that_a_piece_holds_in_part_is_computed_dense() -> None:
    grid = TileGrid((0, 8, 16), (0, 16))
    piece = Piece("sparse24", ((0, 12),), ((0, 16),))
    found = tile_map(grid, np.zeros((2, 1), np.bool_), [piece])
    assert found is not None
    assert flags(found.computed_sparse, (2, 1)).tolist() == [[True], [False]]


def test_stacked_masks_keep_their_uneven_edges() -> None:
    grid = TileGrid((0, 128, 256, 300, 428), (0, 64))
    found = tile_map(grid, np.ones((4, 1), np.bool_), [])
    assert found is not None
    assert found.rows == "2*128,1*44,1*128"


def test_what_is_too_fine_to_look_at_is_left_out() -> None:
    """65,536 tiles are drawn, 65,792 are not."""
    grid = Geometry(4, 4).grid((1024, 1024))
    assert tile_map(grid, np.ones(grid.tiles, np.bool_), []) is not None
    grid = Geometry(4, 4).grid((1028, 1024))
    assert tile_map(grid, np.ones(grid.tiles, np.bool_), []) is None
