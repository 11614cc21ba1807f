"""Keep bits, codes and 2:4 patterns against brute force."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from patch_compile.errors import MaskError
from patch_compile.tiles.pattern import (
    codes_of,
    crowded,
    group_codes,
    pack_keep,
    top2_of_4,
    unpack_keep,
)
from tests.support import said


def random_keep(seed: int, n: int, k: int) -> NDArray[np.bool_]:
    return np.random.default_rng(seed).random((n, k)) < 0.5


keeps = st.builds(
    random_keep, st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 70)
)


@given(keeps)
def test_bits_unpack_to_the_mask_that_was_packed(keep: NDArray[np.bool_]) -> None:
    n, k = keep.shape
    packed = pack_keep(keep)
    assert packed.shape == (n, -(-k // 8))
    np.testing.assert_array_equal(unpack_keep(packed, k), keep)


@given(keeps)
def test_code_of_a_group_is_its_four_bits_low_first(keep: NDArray[np.bool_]) -> None:
    n, k = keep.shape
    codes = group_codes(pack_keep(keep), k)
    assert codes.shape == (n, -(-k // 4))
    for row in range(n):
        for group in range(codes.shape[1]):
            four = keep[row, 4 * group : 4 * group + 4]
            assert codes[row, group] == sum(1 << lane for lane in np.flatnonzero(four))


def test_every_byte_of_two_groups_is_flagged_where_over_two_bits_are_set() -> None:
    every = np.arange(256, dtype=np.uint8)[None]
    flags = crowded(every)
    for byte in range(256):
        low, high = (byte & 15).bit_count() > 2, (byte >> 4).bit_count() > 2
        assert flags[0, byte] == 0x08 * low + 0x80 * high
    assert flags.dtype == np.uint8


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 6),
    st.integers(1, 8),
    st.sampled_from([2, 5, 1000]),
)
def test_top2_keeps_the_pair_of_greatest_sum_and_the_leftmost_of_equals(
    seed: int, n: int, groups: int, levels: int
) -> None:
    saliency = np.random.default_rng(seed).integers(0, levels, (n, 4 * groups)).astype(float)
    keep = top2_of_4(saliency)
    for row in range(n):
        for start in range(0, 4 * groups, 4):
            four = saliency[row, start : start + 4]
            # max() takes the first of equals, and combinations come leftmost first.
            best = max(combinations(range(4), 2), key=lambda pair: four[list(pair)].sum())
            assert np.flatnonzero(keep[row, start : start + 4]).tolist() == list(best)


def test_top2_of_equal_values_keeps_the_left_pair() -> None:
    assert top2_of_4(np.zeros((1, 8))).tolist() == [[True, True, False, False] * 2]


def test_top2_counts_infinity_as_largest() -> None:
    keep = top2_of_4(np.array([[1.0, 2.0, np.inf, -np.inf]]))
    assert keep.tolist() == [[False, True, True, False]]


def test_top2_refuses_in_features_that_no_group_of_four_fills() -> None:
    with pytest.raises(MaskError) as caught:
        top2_of_4(np.zeros((2, 6)))
    assert said(caught) == "in features | are 6; a 2:4 pattern needs a multiple of 4"


def test_every_code_is_the_sum_of_two_24_parts() -> None:
    codes = np.arange(16, dtype=np.uint8)
    first, rest = codes_of(codes, "first"), codes_of(codes, "rest")
    np.testing.assert_array_equal(first | rest, codes)
    np.testing.assert_array_equal(first & rest, 0)
    for code in range(16):
        kept = [bit for bit in range(4) if code >> bit & 1]
        assert first[code] == sum(1 << bit for bit in kept[:2])
