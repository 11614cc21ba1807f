"""A cut makes the dearest tiles dense again, tied ones together, and changes nothing else."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from patch_compile.errors import MaskError
from patch_compile.tiles.cut import cut_masks, cut_to
from patch_compile.tiles.geometry import TileGrid
from patch_compile.tiles.masks import Masks
from patch_compile.tiles.pattern import top2_of_4
from patch_compile.tiles.weight_mask import WeightMask, from_keep
from tests.support import geometries, masks_of, said

Tied = tuple[WeightMask, int, tuple[int, int]]
# Of the area; hundredths, as drawn floats cluster at 0, 1/4 and 1/2.
sparsities = st.integers(0, 50).map(lambda percent: percent / 100)


@st.composite
def scored(draw: st.DrawFn, *, tied: bool | None = None) -> Masks:
    """Masks of some weights, all tiles 2:4, scored, some with ties of random numbers."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    masks = []
    for i in range(draw(st.integers(1, 4))):
        n, k = draw(st.integers(1, 20)), 4 * draw(st.integers(1, 8))
        grid = draw(geometries()).grid((n, k))
        joined = draw(st.booleans()) if tied is None else tied
        ties = rng.integers(0, 6, grid.tiles).astype(np.int32) if joined else None
        masks.append(
            from_keep(
                f"w{i}",
                grid,
                np.zeros(grid.tiles, np.bool_),
                top2_of_4(rng.random((n, k))),
                scores=(rng.random(grid.tiles) * rng.integers(1, 100)).astype(np.float32),
                digests={"float32": "0" * 64},
                geometry="some",
                ties=ties,
            )
        )
    return Masks({mask.name: mask for mask in masks}, {"method": "none"})


def groups(masks: Masks) -> list[list[Tied]]:
    """Tiles that go together, as (mask, its tile)."""
    found: dict[object, list[Tied]] = {}
    for mask in masks.weights.values():
        for r, c in np.ndindex(mask.grid.tiles):
            key = (mask.name, r, c) if mask.ties is None else int(mask.ties[r, c])
            area = int(mask.grid.heights[r] * mask.grid.widths[c])
            found.setdefault(key, []).append((mask, area, (r, c)))
    return list(found.values())


def score_of(mask: WeightMask) -> NDArray[np.float32]:
    assert mask.scores is not None
    return mask.scores


def area(masks: Masks) -> int:
    return sum(mask.shape[0] * mask.shape[1] for mask in masks.weights.values())


@given(scored(), sparsities)
def test_zeros_end_within_half_a_tie_of_the_budget(masks: Masks, sparsity: float) -> None:
    cut = cut_masks(masks, sparsity)
    zeros = sum(int((~mask.keep()).sum()) for mask in cut.weights.values())
    largest = max(sum(size for _, size, _ in group) for group in groups(masks)) / 2
    # The budget itself is rounded to a whole zero.
    assert abs(zeros - sparsity * area(masks)) <= largest / 2 + 0.5


@given(scored(), sparsities)
def test_tied_tiles_end_alike_and_the_cheapest_per_zero_stay_sparse(
    masks: Masks, sparsity: float
) -> None:
    cut = cut_masks(masks, sparsity)
    price: dict[bool, list[float]] = {True: [], False: []}
    for group in groups(masks):
        dense = {bool(cut.weights[mask.name].dense[tile]) for mask, _, tile in group}
        assert len(dense) == 1
        cost = sum(float(score_of(mask)[tile]) for mask, _, tile in group)
        price[dense.pop()].append(cost / sum(size for _, size, _ in group))
    if price[True] and price[False]:
        # Sums of a few float32 in two orders.
        assert max(price[False]) <= min(price[True]) * (1 + 1e-12)


@given(scored(), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_a_budget_in_time_counts_what_each_tile_gains(
    masks: Masks, seed: int, share: float
) -> None:
    rng = np.random.default_rng(seed)
    # Sixteenths add up exactly, in whatever order.
    gains = {
        name: rng.integers(0, 4, mask.dense.shape) / 16.0
        for name, mask in masks.weights.items()
    }
    worth = [
        (
            sum(float(gains[mask.name][tile]) for mask, _, tile in group),
            sum(float(score_of(mask)[tile]) for mask, _, tile in group),
            group,
        )
        for group in groups(masks)
    ]
    target = share * sum(gain for gain, _, _ in worth)
    cut = cut_to(masks, gains, target)

    def stays(group: list[Tied]) -> bool:
        mask, _, tile = group[0]
        return not bool(cut.weights[mask.name].dense[tile])

    reached = sum(gain for gain, _, group in worth if stays(group))
    assert abs(reached - target) <= max(gain for gain, _, _ in worth) / 2 + 1e-9
    assert not any(stays(group) for gain, _, group in worth if gain == 0)
    price = {True: [0.0], False: [np.inf]}
    for gain, score, group in worth:
        if gain:
            price[stays(group)].append(score / gain)
    assert max(price[True]) <= min(price[False]) * (1 + 1e-12)


@given(scored(), sparsities)
def test_dense_tiles_keep_all_and_sparse_ones_their_pattern(
    masks: Masks, sparsity: float
) -> None:
    cut = cut_masks(masks, sparsity)
    assert list(cut.weights) == list(masks.weights)
    assert cut.made_by == masks.made_by
    for name, mask in cut.weights.items():
        before, dense = masks.weights[name], mask.grid.expand(mask.dense)
        np.testing.assert_array_equal(mask.keep(), before.keep() | dense)
        assert (mask.grid, mask.scores, mask.ties) == (before.grid, before.scores, before.ties)
        assert (mask.digests, mask.geometry) == (before.digests, before.geometry)
        mask.check()


@given(scored(), sparsities, sparsities)
def test_cut_of_a_cut_is_the_cut(masks: Masks, one: float, two: float) -> None:
    """But for the half tile by which the first may lie below the second."""
    more, less = max(one, two), min(one, two)
    again = cut_masks(masks, more)
    if round(less * area(masks)) > sum(m.zeros() for m in again.weights.values()):
        return
    direct, twice = cut_masks(masks, less), cut_masks(again, less)
    for name, mask in direct.weights.items():
        np.testing.assert_array_equal(twice.weights[name].dense, mask.dense)


@given(scored(tied=False), sparsities)
def test_ties_of_one_tile_each_change_nothing(masks: Masks, sparsity: float) -> None:
    numbers = iter(range(1000))
    tied = masks_of(
        *(
            from_keep(
                mask.name,
                mask.grid,
                mask.dense,
                mask.keep(),
                scores=mask.scores,
                ties=np.array(
                    [next(numbers) for _ in range(mask.dense.size)], np.int32
                ).reshape(mask.grid.tiles),
            )
            for mask in masks.weights.values()
        )
    )
    cut = cut_masks(tied, sparsity)
    for name, mask in cut_masks(masks, sparsity).weights.items():
        np.testing.assert_array_equal(cut.weights[name].dense, mask.dense)


@given(scored(tied=True), sparsities)
def test_tiles_of_one_logit_for_each_tie_are_cut_by_the_logit(
    masks: Masks, sparsity: float
) -> None:
    """A learned tile's score is its logit times its zeros: ties are then ranked by logit."""
    logits = np.random.default_rng(0).normal(size=6).astype(np.float32)
    learned = masks_of(
        *(
            from_keep(
                mask.name,
                mask.grid,
                mask.dense,
                mask.keep(),
                scores=(logits[mask.ties] * (mask.grid.areas // 2)).astype(np.float32),
                ties=mask.ties,
            )
            for mask in masks.weights.values()
            if mask.ties is not None
        )
    )
    cut = cut_masks(learned, sparsity)
    chosen: dict[bool, list[float]] = {True: [], False: []}
    for mask in cut.weights.values():
        assert mask.ties is not None
        for number, dense in zip(mask.ties.flat, mask.dense.flat, strict=True):
            chosen[bool(dense)].append(float(logits[number]))
    assert max(chosen[False], default=-np.inf) <= min(chosen[True], default=np.inf)


def one_mask(dense: list[bool]) -> WeightMask:
    """Tiles of 4 x 4, 8 zeros each, that cost 1, 2, 3 and so on."""
    grid = TileGrid((0, 4), tuple(range(0, 4 * len(dense) + 1, 4)))
    keep = np.tile([True, False, True, False], (4, len(dense)))
    tiles = np.array([dense])
    scores = np.arange(1, 1 + len(dense), dtype=np.float32)[None]
    return from_keep("w", grid, tiles, keep | grid.expand(tiles), scores=scores)


def test_dense_tiles_are_no_candidates() -> None:
    cut = cut_masks(masks_of(one_mask([True, False, False, False])), 0.25)
    assert cut.weights["w"].dense.tolist() == [[True, False, False, True]]


def _without_scores() -> Masks:
    mask = one_mask([False])
    return masks_of(from_keep("w", mask.grid, mask.dense, mask.keep()))


@pytest.mark.parametrize(
    ("masks", "text"),
    [
        (_without_scores, "weight 'w' | has no scores to cut by; learn it again"),
        (
            lambda: masks_of(one_mask([True, False])),
            (
                "sparsity | is 30.00%, the masks have 25.00%; a cut only lowers it: choose "
                "less, or learn masks of more"
            ),
        ),
    ],
    ids=["no scores", "more than there is"],
)
def test_what_cannot_be_cut_is_refused(masks: Callable[[], Masks], text: str) -> None:
    with pytest.raises(MaskError) as caught:
        cut_masks(masks(), 0.3)
    assert said(caught) == text
