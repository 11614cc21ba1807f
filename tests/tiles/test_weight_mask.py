"""A mask checks its own invariants and stacks like the weights it belongs to."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from patch_compile.errors import MaskError
from patch_compile.tiles.geometry import Geometry, TileGrid
from patch_compile.tiles.masks import Masks
from patch_compile.tiles.weight_mask import WeightMask, concatenate, from_keep
from tests.support import geometries, random_mask, random_weight, said


def some_mask(
    seed: int, n: int, k: int, geometry: Geometry, name: str = "layer.weight"
) -> WeightMask:
    rng = np.random.default_rng(seed)
    return random_mask(
        rng, name, random_weight(rng, n, k), geometry.grid((n, k)), with_digests=False
    )


@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(1, 50), geometries())
def test_mask_with_two_of_four_in_every_sparse_tile_passes(
    seed: int, n: int, k: int, geometry: Geometry
) -> None:
    some_mask(seed, n, k, geometry).check()


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 30),
    st.integers(1, 12).map(lambda groups: 4 * groups),
    geometries(),
    st.integers(3, 4),
)
def test_check_names_exactly_the_planted_group(
    seed: int, n: int, k: int, geometry: Geometry, kept: int
) -> None:
    mask = some_mask(seed, n, k, geometry)
    sparse = np.argwhere(~mask.grid.expand(mask.dense)[:, ::4])
    assume(sparse.size > 0)
    row, group = np.random.default_rng(seed).choice(sparse)
    keep = mask.keep()
    keep[row, 4 * group : 4 * group + 4] = np.arange(4) < kept
    planted = from_keep("layer.weight", mask.grid, mask.dense, keep)
    tile_row = sum(edge <= row for edge in mask.grid.rows) - 1
    tile_column = sum(edge <= 4 * group for edge in mask.grid.columns) - 1
    with pytest.raises(MaskError) as caught:
        planted.check()
    assert said(caught) == (
        f"weight 'layer.weight' | sparse tile ({tile_row}, {tile_column}) keeps {kept} of the "
        f"4 weights at row {row}, columns {4 * group}-{4 * group + 3}; expected at most 2; "
        "mark the tile dense or make the mask again"
    )


def test_full_groups_of_a_dense_tile_are_no_violation() -> None:
    grid = Geometry(2, 4).grid((4, 8))
    dense = np.array([[True, False], [False, True]])
    from_keep("w", grid, dense, grid.expand(dense)).check()


def test_bits_of_another_shape_are_refused() -> None:
    grid = TileGrid((0, 4), (0, 16))
    mask = WeightMask("w", grid, np.array([[True]]), lambda: np.zeros((4, 1), np.uint8))
    with pytest.raises(MaskError) as caught:
        mask.check()
    assert said(caught) == (
        "weight 'w' | keep bits have shape (4, 1); expected (4, 2) for a weight of shape "
        "(4, 16)"
    )


def test_bits_past_the_last_column_are_refused() -> None:
    """They would count as kept weights in `zeros` and as members of the last group."""
    grid = TileGrid((0, 2), (0, 6))
    bits = np.array([[0b00000011], [0b01000011]], np.uint8)
    mask = WeightMask("w", grid, np.array([[False]]), lambda: bits)
    with pytest.raises(MaskError) as caught:
        mask.check()
    assert "weight 'w' | keeps weights beyond its 6 in features; expected zero bits" in said(
        caught
    )


@pytest.mark.parametrize("what", ["tile map", "scores", "ties"])
def test_tile_map_scores_or_ties_of_another_shape_are_refused(what: str) -> None:
    grid = TileGrid((0, 4, 8), (0, 16))
    good, bad = np.zeros((2, 1), np.bool_), np.zeros((1, 2), np.bool_)
    dense = bad if what == "tile map" else good
    scores = bad.astype(np.float32) if what == "scores" else None
    ties = bad.astype(np.int32) if what == "ties" else None
    with pytest.raises(MaskError) as caught:
        WeightMask("w", grid, dense, lambda: np.zeros((8, 2), np.uint8), scores, ties=ties)
    assert said(caught).startswith(f"weight 'w' | {what} has shape (1, 2); expected (2, 1)")


@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(1, 50), geometries())
def test_zeros_and_sparse_share_agree_with_the_keep_mask(
    seed: int, n: int, k: int, geometry: Geometry
) -> None:
    mask = some_mask(seed, n, k, geometry)
    assert mask.zeros() == int((~mask.keep()).sum())
    expected = float((~mask.grid.expand(mask.dense)).mean())
    # Two divisions of integers below 2^53 by the same area, one of them in a mean.
    assert mask.sparse_share == pytest.approx(expected, abs=1e-12)


def test_mask_from_keep_holds_its_ties() -> None:
    grid = TileGrid((0, 4, 8), (0, 16))
    ties = np.array([[5], [6]], np.int32)
    mask = from_keep(
        "w", grid, np.ones((2, 1), np.bool_), np.ones((8, 16), np.bool_), ties=ties
    )
    assert mask.ties is ties
    assert from_keep("w", grid, mask.dense, mask.keep()).ties is None


def stacked(masks: Sequence[WeightMask]) -> np.ndarray:
    return np.concatenate([mask.grid.expand(mask.dense) for mask in masks])


@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.tuples(st.integers(1, 20), geometries()), min_size=1, max_size=3),
    st.integers(1, 40),
)
def test_concatenated_masks_keep_what_their_parts_keep(
    seed: int, parts: list[tuple[int, Geometry]], k: int
) -> None:
    masks = [
        some_mask(seed + i, n, k, geometry, f"part{i}")
        for i, (n, geometry) in enumerate(parts)
    ]
    whole = concatenate(masks)
    whole.check()
    assert whole.name == "+".join(mask.name for mask in masks)
    assert whole.shape == (sum(n for n, _ in parts), k)
    np.testing.assert_array_equal(whole.keep(), np.concatenate([m.keep() for m in masks]))
    np.testing.assert_array_equal(whole.grid.expand(whole.dense), stacked(masks))


def test_masks_of_different_in_features_do_not_stack() -> None:
    a = some_mask(0, 4, 8, Geometry(None, None), "a")
    b = some_mask(0, 4, 12, Geometry(None, None), "b")
    with pytest.raises(MaskError) as caught:
        concatenate([a, b])
    assert said(caught) == "masks ['a', 'b'] | have in features [8, 12]; expected one"


def test_masks_refuse_a_key_that_is_not_the_name() -> None:
    mask = some_mask(0, 4, 8, Geometry(None, None), "a")
    with pytest.raises(MaskError) as caught:
        Masks({"b": mask})
    assert said(caught) == "mask 'b' | is named 'a'; expected its key"


def test_sparsity_of_masks_weighs_each_by_its_size() -> None:
    dense, sparse = np.array([[True]]), np.array([[False]])
    half = np.tile([True, True, False, False], (8, 4))
    small = from_keep("s", TileGrid((0, 8), (0, 16)), sparse, half)
    large = from_keep("l", TileGrid((0, 24), (0, 16)), dense, np.ones((24, 16), np.bool_))
    assert Masks({"s": small, "l": large}).sparsity == 0.125
    assert Masks({}).sparsity == 0


def test_masks_check_every_weight() -> None:
    grid = TileGrid((0, 1), (0, 4))
    good = from_keep("a", grid, np.array([[True]]), np.ones((1, 4), np.bool_))
    bad = from_keep("b", grid, np.array([[False]]), np.ones((1, 4), np.bool_))
    with pytest.raises(MaskError, match="weight 'b'"):
        Masks({"a": good, "b": bad}).check()
