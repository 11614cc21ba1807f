"""The 2:4 checks against plain loops, for every float type and both orientations."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from patch_compile.tiles.geometry import Geometry
from patch_compile.tiles.inspect import group_counts, nonzero, tile_counts, violations
from tests.support import FLOATS, geometries


def weight_with_zeros(seed: int, n: int, k: int, dtype: str) -> NDArray[Any]:
    """Values that are easy to get wrong: both zeros, NaN, Inf, the least subnormal."""
    rng = np.random.default_rng(seed)
    kind = FLOATS[dtype][0]
    least = np.array([1], f"u{kind.itemsize}").view(kind)[0]
    special = np.array([0.0, -0.0, 0.0, -0.0, np.nan, np.inf, 1.5, -3, least], kind)
    return rng.choice(special, (n, k))


def bits_of(weight: NDArray[Any]) -> NDArray[Any]:
    return weight.view(f"u{weight.dtype.itemsize}")


def counts_by_loop(weight: NDArray[Any]) -> NDArray[np.int64]:
    n, k = weight.shape
    counts = np.zeros((n, -(-k // 4)), np.int64)
    for row in range(n):
        for column in range(k):
            # Comparing with zero: -0.0 equals it, NaN does not.
            counts[row, column // 4] += float(weight[row, column]) != 0.0
    return counts


weights = st.builds(
    weight_with_zeros,
    st.integers(0, 2**32 - 1),
    st.integers(1, 12),
    st.integers(1, 30),
    st.sampled_from(list(FLOATS)),
)


@given(weights, st.booleans(), st.booleans())
def test_groups_are_counted_as_a_loop_counts_them(
    weight: NDArray[Any], transposed: bool, contiguous: bool
) -> None:
    flags = nonzero(bits_of(weight))
    stored = flags.T if transposed else flags
    stored = np.ascontiguousarray(stored) if contiguous else np.asfortranarray(stored)
    counts = group_counts(stored, 0 if transposed else 1)
    expected = counts_by_loop(weight)
    np.testing.assert_array_equal(counts.T if transposed else counts, expected)


@given(weights, st.booleans())
def test_violations_are_the_groups_with_over_two_nonzeros(
    weight: NDArray[Any], transposed: bool
) -> None:
    stored = np.ascontiguousarray(weight.T) if transposed else weight
    found = violations(bits_of(stored), 0 if transposed else 1)
    assert found == int((counts_by_loop(weight) > 2).sum())


@given(weights, geometries(), st.booleans())
def test_fullest_group_and_zeros_agree_with_a_loop(
    weight: NDArray[Any], geometry: Geometry, transposed: bool
) -> None:
    grid = geometry.grid((weight.shape[0], weight.shape[1]))
    stored = np.ascontiguousarray(weight.T) if transposed else weight
    fullest, zeros = tile_counts(bits_of(stored), grid, transposed=transposed)
    counts = counts_by_loop(weight)
    assert zeros == weight.size - int(counts.sum())
    assert fullest.shape == grid.tiles
    for row in range(grid.tiles[0]):
        for column in range(grid.tiles[1]):
            top, bottom = grid.rows[row : row + 2]
            left, right = grid.columns[column : column + 2]
            block = counts[top:bottom, left // 4 : -(-right // 4)]
            assert fullest[row, column] == block.max()


@pytest.mark.parametrize("transposed", [False, True])
def test_weight_larger_than_one_block_is_counted_whole(transposed: bool) -> None:
    """Blocks hold 2^18 elements: this weight takes three along either axis."""
    rng = np.random.default_rng(0)
    n, k = (1030, 700) if transposed else (700, 1030)
    weight = (rng.random((n, k)) < 0.4).astype(np.float32)
    grid = Geometry(100, 200).grid((n, k))
    stored = np.ascontiguousarray(weight.T) if transposed else weight
    fullest, zeros = tile_counts(bits_of(stored), grid, transposed=transposed)
    padded = np.pad(weight, ((0, 0), (0, -k % 4)))
    counts = padded.reshape(n, -1, 4).sum(axis=2)
    assert zeros == int((weight == 0).sum())
    assert violations(bits_of(stored), 0 if transposed else 1) == int((counts > 2).sum())
    for row, column in np.ndindex(grid.tiles):
        rows, columns = slice(100 * row, 100 * row + 100), slice(50 * column, 50 * column + 50)
        assert fullest[row, column] == counts[rows, columns].max()


def test_integers_have_no_negative_zero() -> None:
    lowest = np.array([[0x80, 0, 1, 0x80]], np.uint8)
    assert nonzero(lowest, signed_zero=False).tolist() == [[True, False, True, True]]
    assert nonzero(lowest).tolist() == [[False, False, True, False]]
    assert violations(lowest, 1, signed_zero=False) == 1
    assert violations(lowest, 1) == 0
