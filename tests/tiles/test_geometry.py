"""Grids cut a weight without gaps, and geometries read back what they print."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patch_compile.errors import RecipeError
from patch_compile.tiles.geometry import Geometry, TileGrid
from tests.support import geometries, said


@given(geometries())
def test_geometry_reads_back_what_it_prints(geometry: Geometry) -> None:
    assert Geometry.parse(str(geometry)) == geometry


@pytest.mark.parametrize(
    ("text", "rows", "columns"),
    [
        ("128x64", 128, 64),
        ("band:7", 7, None),
        ("column:12", None, 12),
        ("weight", None, None),
    ],
)
def test_geometry_parses_each_form(text: str, rows: int | None, columns: int | None) -> None:
    assert Geometry.parse(text) == Geometry(rows, columns)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "is not a geometry"),
        ("128", "is not a geometry"),
        ("128X128", "is not a geometry"),
        ("128x128\n", "is not a geometry"),
        ("band:", "is not a geometry"),
        ("rows:8", "is not a geometry"),
        ("-4x4", "is not a geometry"),
        ("4x" + "9" * 5000, "is not a geometry"),
        ("8x6", "tile width along K | is 6; expected a multiple of 4"),
        ("column:0", "tile width along K | is 0"),
        ("0x8", "tile height along N | is 0; expected 1 or more"),
        ("band:0", "tile height along N | is 0"),
    ],
)
def test_bad_geometry_is_refused_with_its_value(text: str, part: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Geometry.parse(text)
    assert part in said(caught)


@given(geometries(), st.integers(1, 60), st.integers(1, 60))
def test_grid_covers_every_weight_once(geometry: Geometry, n: int, k: int) -> None:
    grid = geometry.grid((n, k))
    seen = np.zeros((n, k), np.int64)
    for row in range(grid.tiles[0]):
        for column in range(grid.tiles[1]):
            top, bottom = grid.rows[row : row + 2]
            left, right = grid.columns[column : column + 2]
            assert grid.areas[row, column] == (bottom - top) * (right - left)
            seen[top:bottom, left:right] += 1
    assert grid.shape == (n, k)
    np.testing.assert_array_equal(seen, 1)


def test_only_the_last_tile_of_an_axis_is_smaller() -> None:
    grid = Geometry(4, 8).grid((10, 20))
    assert grid == TileGrid((0, 4, 8, 10), (0, 8, 16, 20))
    assert grid.heights.tolist() == [4, 4, 2]
    assert grid.widths.tolist() == [8, 8, 4]


def test_tile_larger_than_the_weight_holds_all_of_it() -> None:
    assert Geometry(128, 128).grid((3, 5)) == TileGrid((0, 3), (0, 5))


@given(geometries(), st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_expand_and_total_agree_with_a_loop_over_tiles(
    geometry: Geometry, n: int, k: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    grid = geometry.grid((n, k))
    values = rng.integers(-9, 9, (n, k)).astype(np.float32)
    tiles = rng.integers(0, 99, grid.tiles)
    total, expanded = grid.total(values), grid.expand(tiles)
    assert total.dtype == np.float64
    assert expanded.shape == (n, k)
    for row in range(grid.tiles[0]):
        for column in range(grid.tiles[1]):
            block = (
                slice(*grid.rows[row : row + 2]),
                slice(*grid.columns[column : column + 2]),
            )
            assert total[row, column] == values[block].sum(dtype=np.float64)
            assert (expanded[block] == tiles[row, column]).all()


def test_total_of_flags_counts_past_the_flags_own_range() -> None:
    flags = np.ones((300, 4), np.bool_)
    assert TileGrid((0, 300), (0, 4)).total(flags).tolist() == [[1200.0]]


@pytest.mark.parametrize("edges", [(), (0,), (1, 4), (0, 4, 4), (0, 8, 4)])
def test_grid_refuses_edges_that_do_not_rise_from_zero(edges: tuple[int, ...]) -> None:
    with pytest.raises(RecipeError) as caught:
        TileGrid((0, 4), edges)
    assert said(caught).startswith(f"tile edges along K | are {list(edges)}")
    with pytest.raises(RecipeError, match="tile edges along N"):
        TileGrid(edges, (0, 4))
