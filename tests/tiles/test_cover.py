"""The cover holds every dense tile and no cheaper one does."""

from itertools import product

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from patch_compile.tiles.cover import minimum_cover


def cheapest_by_trial(dense: NDArray[np.bool_], rows: list[int], columns: list[int]) -> int:
    """Tries every set of rows; the columns that must join it follow."""
    costs = []
    for chosen in product([False, True], repeat=len(rows)):
        left = np.any(dense[~np.array(chosen)], axis=0).tolist()
        costs.append(
            sum(c for c, take in zip(rows, chosen, strict=True) if take)
            + sum(c for c, take in zip(columns, left, strict=True) if take)
        )
    return min(costs)


@st.composite
def problems(draw: st.DrawFn) -> tuple[NDArray[np.bool_], list[int], list[int]]:
    row_count, column_count = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    costs = st.integers(1, draw(st.sampled_from([1, 3, 50])))
    cells = draw(
        st.lists(
            st.booleans(),
            min_size=row_count * column_count,
            max_size=row_count * column_count,
        )
    )
    rows = draw(st.lists(costs, min_size=row_count, max_size=row_count))
    columns = draw(st.lists(costs, min_size=column_count, max_size=column_count))
    return np.array(cells).reshape(row_count, column_count), rows, columns


@given(problems(), st.sampled_from([1, 2**20, 2**40]))
def test_cover_is_the_cheapest_of_all(
    problem: tuple[NDArray[np.bool_], list[int], list[int]], scale: int
) -> None:
    dense, rows, columns = problem
    held_rows, held_columns = minimum_cover(
        dense, np.array(rows) * scale, np.array(columns) * scale
    )
    assert not dense[~held_rows][:, ~held_columns].any()
    cost = int(np.array(rows)[held_rows].sum() + np.array(columns)[held_columns].sum())
    assert cost == cheapest_by_trial(dense, rows, columns)


def test_no_dense_tile_needs_no_strip() -> None:
    rows, columns = minimum_cover(np.zeros((3, 2), np.bool_), np.ones(3), np.ones(2))
    assert not rows.any()
    assert not columns.any()


def test_cover_of_the_largest_real_map_does_not_overflow() -> None:
    """The costs of an lm_head of 128,256 x 16,384 in 128-tiles sum to far over 2^31."""
    dense = np.zeros((1002, 128), np.bool_)
    dense[[3, 500]] = True
    dense[:, 7] = True
    rows, columns = minimum_cover(
        dense, np.full(1002, 128 * 16384), np.full(128, 128 * 128256)
    )
    assert np.flatnonzero(rows).tolist() == [3, 500]
    assert np.flatnonzero(columns).tolist() == [7]


def test_coprime_costs_over_32_bits_still_cover_everything() -> None:
    """They are divided until they fit, so only the last digits of the optimum may go."""
    rng = np.random.default_rng(0)
    dense = rng.random((12, 10)) < 0.3
    rows = rng.integers(2**40, 2**41, 12)
    columns = rng.integers(2**40, 2**41, 10)
    held_rows, held_columns = minimum_cover(dense, rows, columns)
    assert not dense[~held_rows][:, ~held_columns].any()
    cost = int(rows[held_rows].sum() + columns[held_columns].sum())
    best = cheapest_by_trial(dense, rows.tolist(), columns.tolist())
    # 22 costs rounded to units of 2^30th of their sum.
    assert best <= cost <= best * (1 + 22 * 2**-29)
