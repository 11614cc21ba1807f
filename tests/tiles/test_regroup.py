"""Regrouping keeps the area and buys whole lines; what it loses is told."""

from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patch_compile.errors import MaskError
from patch_compile.recipe import CompileRecipe
from patch_compile.tiles.cost import MultiplyAdds
from patch_compile.tiles.geometry import TileGrid
from patch_compile.tiles.operations import price
from patch_compile.tiles.planner import plan_weight
from patch_compile.tiles.regroup import regroup
from patch_compile.tiles.weight_mask import WeightMask

RECIPE = CompileRecipe(min_gain=0.0)
PAIRS = list(combinations(range(4), 2))


def no_bits() -> Any:
    raise AssertionError("a decision read the keep bits")


def free_mask(rng: np.random.Generator, rows: int, columns: int, share: float) -> WeightMask:
    """Tiles of odd sizes, dense at random."""
    edges = [np.cumsum(rng.integers(1, 4, count) * 4) for count in (rows, columns)]
    grid = TileGrid(*((0, *map(int, edge)) for edge in edges))
    scores = rng.random(grid.tiles).astype(np.float32)
    return WeightMask("w", grid, rng.random(grid.tiles) < share, no_bits, scores)


@given(
    st.integers(0, 2**32 - 1),
    st.integers(2, 6),
    st.integers(2, 6),
    st.sampled_from([0.1, 0.3, 0.6]),
)
def test_lines_are_whole_no_larger_than_before_and_of_a_cheaper_plan(
    seed: int, rows: int, columns: int, share: float
) -> None:
    mask = free_mask(np.random.default_rng(seed), rows, columns, share)
    found = regroup([mask], RECIPE)
    if found is None:
        return
    (dense,) = found.dense
    lines = dense if found.form == "bands" else dense.T
    assert all(line.all() or not line.any() for line in lines)
    assert mask.grid.areas[~dense].sum() <= mask.grid.areas[~mask.dense].sum()
    assert mask.scores is not None
    assert found.after == pytest.approx(float(mask.scores[~dense].sum()), rel=1e-5)
    assert found.before == pytest.approx(float(mask.scores[~mask.dense].sum()), rel=1e-5)
    prices = [
        price(plan.shape, plan.pieces, MultiplyAdds())
        for m in (mask, replace(mask, dense=dense))
        for plan in [plan_weight("w", [m], RECIPE)]
    ]
    assert prices[1] < prices[0]


def test_equal_lines_are_those_of_least_score_by_brute_force() -> None:
    """Half of the area is 2:4, in a chessboard that no cut can use."""
    rng = np.random.default_rng(1)
    edges = tuple(range(0, 40, 8))
    grid = TileGrid(edges, edges)
    dense = np.indices((4, 4)).sum(axis=0) % 2 == 0
    scores = rng.random((4, 4)).astype(np.float32)
    found = regroup([WeightMask("w", grid, dense, no_bits, scores)], RECIPE)
    assert found is not None
    sums = [scores.sum(axis=axis) for axis in (0, 1)]
    best = min(float(line[list(pair)].sum()) for line in sums for pair in PAIRS)
    assert found.after == pytest.approx(best)


def test_maps_that_compile_as_they_are_stay() -> None:
    rng = np.random.default_rng(0)
    grid = TileGrid((0, 8, 16), (0, 8, 16))
    scores = rng.random((2, 2)).astype(np.float32)
    bands = np.array([[True, True], [False, False]])
    assert regroup([WeightMask("w", grid, bands, no_bits, scores)], RECIPE) is None
    tied = np.zeros((2, 2), np.int32)
    free = np.array([[True, False], [False, False]])
    assert regroup([WeightMask("w", grid, free, no_bits, scores, ties=tied)], RECIPE) is None
    band = TileGrid((0, 8, 16), (0, 16))
    one = np.array([[True], [False]])
    assert regroup([WeightMask("w", band, one, no_bits)], RECIPE) is None


def test_maps_without_scores_are_refused() -> None:
    grid = TileGrid((0, 8, 16, 24), (0, 8, 16, 24))
    free = np.eye(3, dtype=np.bool_)
    with pytest.raises(MaskError, match=r"weight 'w' \| has no scores to regroup"):
        regroup([WeightMask("w", grid, free, no_bits)], RECIPE)
