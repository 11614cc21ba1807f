"""The budget is met within half a tile, by the tiles that cost least."""

from itertools import accumulate
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from patch_compile.errors import RecipeError
from patch_compile.tiles.budget import choose_sparse_tiles
from tests.support import said

Arrays = list[NDArray[Any]]


@st.composite
def models(draw: st.DrawFn) -> tuple[Arrays, Arrays]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sizes = draw(
        st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=4)
    )
    largest = draw(st.sampled_from([1, 8, 8192]))
    scores = [rng.random(size) * rng.integers(1, 100, size) for size in sizes]
    return scores, [rng.integers(0, largest + 1, size) for size in sizes]


# Of all zeros there are; hundredths, as drawn floats cluster at 0, 1/2 and 1.
shares = st.integers(0, 100).map(lambda percent: percent / 100)


def gained(chosen: list[NDArray[np.bool_]], zeros: Arrays) -> int:
    return sum(int(z[c].sum()) for c, z in zip(chosen, zeros, strict=True))


def prefix_totals(scores: Arrays, zeros: Arrays) -> list[int]:
    """The zeros after none, one, two ... of the tiles, the cheapest per zero first."""
    tiles = [
        (score / zero, int(zero))
        for s, z in zip(scores, zeros, strict=True)
        for score, zero in zip(s.ravel(), z.ravel(), strict=True)
        if zero
    ]
    return [0, *accumulate(zero for _, zero in sorted(tiles, key=lambda tile: tile[0]))]


@given(models(), shares)
def test_zeros_end_within_half_a_tile_of_the_target(
    model: tuple[Arrays, Arrays], share: float
) -> None:
    scores, zeros = model
    target = int(share * sum(int(z.sum()) for z in zeros))
    chosen = choose_sparse_tiles(scores, zeros, target)
    assert [c.shape for c in chosen] == [z.shape for z in zeros]
    missed = abs(gained(chosen, zeros) - target)
    assert 2 * missed <= max(int(z.max()) for z in zeros)
    assert missed == min(abs(total - target) for total in prefix_totals(scores, zeros))


@given(models(), shares, shares)
def test_larger_target_keeps_every_tile_of_a_smaller_one(
    model: tuple[Arrays, Arrays], one: float, two: float
) -> None:
    scores, zeros = model
    total = sum(int(z.sum()) for z in zeros)
    less = choose_sparse_tiles(scores, zeros, int(min(one, two) * total))
    more = choose_sparse_tiles(scores, zeros, int(max(one, two) * total))
    assert all((a <= b).all() for a, b in zip(less, more, strict=True))


@given(models(), shares)
def test_no_tile_left_dense_is_cheaper_per_zero_than_one_taken(
    model: tuple[Arrays, Arrays], share: float
) -> None:
    scores, zeros = model
    target = int(share * sum(int(z.sum()) for z in zeros))
    chosen = np.concatenate([c.ravel() for c in choose_sparse_tiles(scores, zeros, target)])
    gains = np.concatenate([z.ravel() for z in zeros])
    price = np.concatenate([s.ravel() for s in scores]) / np.maximum(gains, 1)
    assert not chosen[gains == 0].any()
    left = price[~chosen & (gains > 0)]
    if chosen.any() and left.size:
        assert price[chosen].max() <= left.min()


def test_nothing_is_taken_for_nothing_and_all_for_all() -> None:
    scores, zeros = [np.ones((2, 3))], [np.full((2, 3), 8)]
    assert not choose_sparse_tiles(scores, zeros, 0)[0].any()
    assert choose_sparse_tiles(scores, zeros, 48)[0].all()
    assert choose_sparse_tiles(scores, zeros, 10**9)[0].all()


@pytest.mark.parametrize(("target", "taken"), [(11, 1), (12, 1), (13, 2)])
def test_tile_is_taken_if_that_ends_nearer(target: int, taken: int) -> None:
    """At 12 both ends are as near, and the sparser model has the lower quality."""
    chosen = choose_sparse_tiles([np.array([[1.0, 2.0]])], [np.array([[8, 8]])], target)
    assert int(chosen[0].sum()) == taken


def test_a_tile_without_zeros_to_gain_stays_dense() -> None:
    """A weight whose 2:4 pattern drops nothing would be taken for free forever."""
    chosen = choose_sparse_tiles([np.array([[0.0, 1.0]])], [np.array([[0, 8]])], 8)
    assert chosen[0].tolist() == [[False, True]]


@st.composite
def grouped(draw: st.DrawFn) -> tuple[Arrays, Arrays, Arrays]:
    """Models whose tiles have numbers at random, shared within weights and between them."""
    scores, zeros = draw(models())
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    most = draw(st.sampled_from([1, 3, 100]))
    return scores, zeros, [rng.integers(0, most, z.shape).astype(np.int32) for z in zeros]


def joined(values: Arrays, groups: Arrays) -> dict[int, float]:
    """Sums by group, one tile after the other."""
    sums: dict[int, float] = {}
    for value, group in zip(values, groups, strict=True):
        for v, g in zip(value.ravel().tolist(), group.ravel().tolist(), strict=True):
            sums[g] = sums.get(g, 0) + v
    return sums


@given(grouped(), shares)
def test_groups_go_as_tiles_of_their_summed_scores_and_zeros_do(
    model: tuple[Arrays, Arrays, Arrays], share: float
) -> None:
    scores, zeros, groups = model
    target = int(share * sum(int(z.sum()) for z in zeros))
    chosen = choose_sparse_tiles(scores, zeros, target, groups)
    cost, gain = joined(scores, groups), joined(zeros, groups)
    numbers = sorted(cost)
    one = np.array([[cost[number] for number in numbers]])
    alone = choose_sparse_tiles([one], [np.array([[gain[n] for n in numbers]])], target)
    expected = dict(zip(numbers, alone[0][0].tolist(), strict=True))
    for taken, group in zip(chosen, groups, strict=True):
        assert taken.tolist() == [[expected[g] for g in row] for row in group.tolist()]


@given(grouped(), shares)
def test_zeros_end_within_half_a_group_of_the_target(
    model: tuple[Arrays, Arrays, Arrays], share: float
) -> None:
    scores, zeros, groups = model
    target = int(share * sum(int(z.sum()) for z in zeros))
    missed = abs(gained(choose_sparse_tiles(scores, zeros, target, groups), zeros) - target)
    assert 2 * missed <= max(joined(zeros, groups).values())


@given(models(), shares)
def test_groups_of_one_tile_are_no_groups(model: tuple[Arrays, Arrays], share: float) -> None:
    scores, zeros = model
    target = int(share * sum(int(z.sum()) for z in zeros))
    starts = [0, *accumulate(z.size for z in zeros)]
    groups = [
        np.arange(start, start + z.size).reshape(z.shape)
        for start, z in zip(starts, zeros, strict=False)
    ]
    alone = choose_sparse_tiles(scores, zeros, target)
    for one, other in zip(
        alone, choose_sparse_tiles(scores, zeros, target, groups), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_a_group_is_charged_per_zero_of_all_its_tiles() -> None:
    """Cheap as its first tile alone would be, its second makes it dear."""
    scores = [np.array([[1.0, 4.0]]), np.array([[9.0]])]
    zeros = [np.array([[8, 8]]), np.array([[8]])]
    groups = [np.array([[0, 1]]), np.array([[0]])]
    chosen = choose_sparse_tiles(scores, zeros, 8, groups)
    assert [taken.tolist() for taken in chosen] == [[[False, True]], [[False]]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_no_numbers_are_refused(bad: float) -> None:
    with pytest.raises(RecipeError) as caught:
        choose_sparse_tiles([np.array([[1.0, bad]])], [np.array([[8, 8]])], 8)
    assert "tile scores | hold NaN or Inf" in said(caught)
