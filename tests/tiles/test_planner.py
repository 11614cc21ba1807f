"""The decision holds the whole weight, keeps its promises, and is never dearer than dense."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from patch_compile.recipe import CompileRecipe
from patch_compile.tiles.cost import MultiplyAdds
from patch_compile.tiles.geometry import Geometry
from patch_compile.tiles.pattern import codes_of, pack_keep, unpack_keep
from patch_compile.tiles.plan import Piece, Span, WeightPlan
from patch_compile.tiles.planner import plan_weight
from patch_compile.tiles.weight_mask import WeightMask
from tests.support import geometries, random_mask, random_weight

CUTS = ("whole", "columns", "reduction", "cover")


@st.composite
def masks(draw: st.DrawFn) -> WeightMask:
    n, k = draw(st.integers(1, 40)), draw(st.integers(1, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    grid = draw(geometries()).grid((n, k))
    density = draw(st.sampled_from([0.0, 0.05, 0.3, 1.0]))
    return random_mask(rng, "m", random_weight(rng, n, k), grid, density, with_digests=False)


lowerings = st.sampled_from(["auto", "dense", *CUTS])


def plan_of(mask: WeightMask, **recipe: Any) -> WeightPlan:
    return plan_weight("w", [mask], CompileRecipe(**recipe))


def block(piece: Piece) -> tuple[NDArray[np.int64], ...]:
    rows = [index for span in piece.rows for index in range(*span)]
    columns = [index for span in piece.columns for index in range(*span)]
    return np.ix_(rows, columns)


def is_24(keep: NDArray[np.bool_]) -> bool:
    return bool((keep.reshape(keep.shape[0], -1, 4).sum(axis=2) <= 2).all())


@given(masks(), lowerings)
def test_pieces_are_disjoint_and_hold_the_whole_weight(
    mask: WeightMask, lowering: str
) -> None:
    plan = plan_of(mask, lowering=lowering, min_gain=0.0)
    times = np.zeros(mask.shape, np.int64)
    for piece in plan.pieces:
        times[block(piece)] += 1
        assert tuple(times[block(piece)].shape) == piece.shape
    assert plan.shape == mask.shape
    np.testing.assert_array_equal(times, 1)


@given(masks(), lowerings)
def test_sparse_pieces_are_24_along_their_own_columns(mask: WeightMask, lowering: str) -> None:
    plan = plan_of(mask, lowering=lowering, min_gain=0.0)
    for piece in plan.pieces:
        if piece.role == "sparse24":
            assert piece.shape[1] % 4 == 0
            assert is_24(mask.keep()[block(piece)])


@given(masks(), lowerings)
def test_no_weight_of_a_sparse_piece_lies_in_a_dense_tile(
    mask: WeightMask, lowering: str
) -> None:
    dense = mask.grid.expand(mask.dense)
    for piece in plan_of(mask, lowering=lowering, min_gain=0.0).pieces:
        assert piece.role == "dense" or not dense[block(piece)].any()


@given(masks())
def test_plan_is_never_dearer_than_dense_nor_than_a_forced_cut(mask: WeightMask) -> None:
    plan = plan_of(mask, min_gain=0.0)
    assert plan.macs <= mask.shape[0] * mask.shape[1]
    for lowering in CUTS:
        assert plan.macs <= plan_of(mask, lowering=lowering).macs


@given(masks(), lowerings)
def test_spans_are_sorted_and_never_touch(mask: WeightMask, lowering: str) -> None:
    """Touching spans would be two Gathers where one Slice does."""
    for piece in plan_of(mask, lowering=lowering, min_gain=0.0).pieces:
        for spans in (piece.rows, piece.columns):
            assert all(start < stop for start, stop in spans)
            assert all(one[1] < two[0] for one, two in pairwise(spans))


@given(masks(), st.sampled_from(CUTS))
def test_forced_cut_is_taken_or_the_reason_is_given(mask: WeightMask, lowering: str) -> None:
    plan = plan_of(mask, lowering=lowering)
    if plan.lowering == lowering:
        assert plan.reason == "forced by the recipe"
        assert any(piece.role == "sparse24" for piece in plan.pieces)
    else:
        assert plan.lowering == "dense"
        assert plan.reason in (
            f"'{lowering}' was forced but does not fit the tile map",
            "every tile is dense",
        ) or plan.reason.startswith(f"in features {mask.shape[1]} are not a multiple of 4")


@given(masks())
def test_gain_below_the_least_one_leaves_the_weight_dense(mask: WeightMask) -> None:
    free = plan_of(mask, min_gain=0.0)
    gain = 1 - free.macs / (mask.shape[0] * mask.shape[1])
    assert plan_of(mask, min_gain=max(0.0, gain - 1e-9)).lowering == free.lowering
    if free.lowering != "dense":
        refused = plan_of(mask, min_gain=min(1.0, gain + 1e-9))
        assert refused.lowering == "dense"
        assert f"best cut ('{free.lowering}') saves {gain:.1%}" in refused.reason


@given(masks())
def test_residual_is_two_24_matrices_whose_sum_is_the_weight(mask: WeightMask) -> None:
    plan = plan_of(mask, lowering="residual")
    if plan.lowering != "residual":
        held = mask.dense.any(axis=0)
        assert held.all() or not held.any() or mask.shape[1] % 4
        return
    first, rest = plan.pieces
    assert (first.part, rest.part) == ("first", "rest")
    parts = []
    for piece in plan.pieces:
        codes = codes_of(mask.codes(), piece.part)  # type: ignore[arg-type]
        bits = (codes[:, :, None] >> np.arange(4, dtype=np.uint8)) & 1
        whole = bits.reshape(mask.shape).astype(np.bool_)
        kept = np.zeros(mask.shape, np.bool_)
        kept[block(piece)] = whole[block(piece)]
        assert is_24(kept)
        parts.append(kept)
    np.testing.assert_array_equal(parts[0] ^ parts[1], mask.keep())


def test_residual_wins_where_moving_x_is_dear() -> None:
    """The same products as `reduction` but for one part of X fewer to take."""

    class Moves(MultiplyAdds):
        def moved(self, features: int) -> float:
            return 1.0 * features

    mask = mask_of([[True, False, False, False]], (16, 32), "column:8")
    assert plan_of(mask).lowering == "reduction"
    assert plan_weight("w", [mask], CompileRecipe(), Moves()).lowering == "residual"


def mask_of(dense: list[list[bool]], shape: tuple[int, int], geometry: str) -> WeightMask:
    rng = np.random.default_rng(0)
    weight = random_weight(rng, *shape)
    return random_mask(rng, "m", weight, geometry, dense=np.array(dense))


@pytest.mark.parametrize(
    ("dense", "lowering", "share"),
    [
        ([[False, False], [False, False]], "whole", 0.5),
        ([[True, True], [False, False]], "columns", 0.75),
        ([[True, False], [True, False]], "reduction", 0.75),
        ([[True, True], [True, True]], "dense", 1.0),
        ([[True, False], [False, True]], "dense", 1.0),
        # Both a dense row and a dense column would hold it; columns needs no slice of X.
        ([[True, False], [False, False]], "columns", 0.75),
    ],
)
def test_cheapest_cut_of_a_small_tile_map(
    dense: list[list[bool]], lowering: str, share: float
) -> None:
    plan = plan_of(mask_of(dense, (16, 16), "8x8"))
    assert plan.lowering == lowering
    assert plan.macs == share * 256


def test_cover_joins_dense_rows_and_columns_in_three_pieces() -> None:
    dense = np.zeros((4, 4), np.bool_)
    dense[1] = True
    dense[:, 2] = True
    plan = plan_of(mask_of(dense.tolist(), (16, 32), "4x8"))
    rest: tuple[Span, ...] = ((0, 4), (8, 16))
    assert plan.lowering == "cover"
    assert plan.pieces == (
        Piece("dense", ((4, 8),), ((0, 32),)),
        Piece("dense", rest, ((16, 24),)),
        Piece("sparse24", rest, ((0, 16), (24, 32))),
    )
    assert plan.reason == "saves 28.1% of the multiply-adds"


def test_cover_weighs_strips_by_their_area() -> None:
    """A lone dense tile goes with its column, an eighth of the weight, not with its row."""
    dense = np.zeros((4, 8), np.bool_)
    dense[1] = True
    dense[3, 2] = True
    plan = plan_of(mask_of(dense.tolist(), (16, 64), "4x8"))
    assert plan.lowering == "cover"
    assert [(p.rows, p.columns) for p in plan.pieces if p.role == "dense"] == [
        (((4, 8),), ((0, 64),)),
        (((0, 4), (8, 16)), ((16, 24),)),
    ]


@pytest.mark.parametrize("lowering", ["auto", *CUTS])
def test_in_features_that_are_no_multiple_of_four_stay_dense(lowering: str) -> None:
    mask = mask_of([[False]], (8, 18), "weight")
    plan = plan_of(mask, lowering=lowering)
    assert plan.lowering == "dense"
    assert plan.reason == "in features 18 are not a multiple of 4: no 2:4 kernel takes it"


def test_wholly_dense_weight_says_so() -> None:
    assert plan_of(mask_of([[True]], (8, 16), "weight")).reason == "every tile is dense"


def test_dense_forced_by_the_recipe_says_so() -> None:
    plan = plan_of(mask_of([[False]], (8, 16), "weight"), lowering="dense")
    assert (plan.lowering, plan.reason) == ("dense", "forced by the recipe")


def test_fused_weight_is_planned_as_one() -> None:
    q, k = mask_of([[True]], (16, 16), "weight"), mask_of([[False]], (8, 16), "weight")
    plan = plan_weight("qk", [q, k], CompileRecipe())
    assert plan.masks == ("m", "m")
    assert plan.shape == (24, 16)
    assert [piece.rows for piece in plan.pieces] == [((0, 16),), ((16, 24),)]


def test_planning_reads_no_keep_bits() -> None:
    """Plans are made of tile maps, so that a dry run touches no big file."""

    def never() -> NDArray[np.uint8]:
        raise AssertionError("the planner read the keep bits")

    grid = Geometry(8, None).grid((16, 16))
    lazy = WeightMask("m", grid, np.array([[True], [False]]), never)
    assert plan_of(lazy).lowering == "columns"


def test_keep_mask_helpers_of_these_tests_tell_24_from_not() -> None:
    keep = unpack_keep(pack_keep(np.array([[True, True, False, False]])), 4)
    assert is_24(keep)
    assert not is_24(np.array([[True, True, True, False]]))
