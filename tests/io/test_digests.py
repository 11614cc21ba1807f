"""Digests are the sha256 of a weight's bytes in the type and layout of an export."""

import hashlib

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patch_compile.io.digests import FLOAT_TYPES, digest, digest_key, digests

KINDS = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@given(st.integers(1, 60), st.integers(1, 60), st.sampled_from(list(KINDS)))
def test_digest_is_of_row_major_bytes_whatever_the_strides(n: int, k: int, dtype: str) -> None:
    weight = np.random.default_rng(0).standard_normal((n, k)).astype(KINDS[dtype])
    expected = hashlib.sha256(weight.tobytes()).hexdigest()
    assert digest(weight) == expected
    assert digest(np.asfortranarray(weight)) == expected
    assert digest(np.repeat(weight, 2, axis=0)[::2]) == expected


def test_every_type_and_layout_of_an_export_has_its_digest() -> None:
    weight = np.random.default_rng(0).standard_normal((6, 10)).astype(np.float32)
    expected = {}
    for name, kind in KINDS.items():
        cast = weight.astype(kind)
        expected[name] = hashlib.sha256(cast.tobytes()).hexdigest()
        expected[f"{name}.T"] = hashlib.sha256(cast.T.tobytes()).hexdigest()
    assert digests(weight) == expected
    assert expected.keys() == {
        digest_key(name, transposed=turned) for name in FLOAT_TYPES for turned in (False, True)
    }


@pytest.mark.parametrize("value", [1e30, -1e30, np.inf, np.nan])
def test_values_out_of_range_of_a_small_type_warn_of_nothing(value: float) -> None:
    """Warnings are errors in these tests."""
    assert len(digests(np.full((2, 4), value, np.float32))) == 6


def test_one_changed_bit_changes_every_digest_it_reaches() -> None:
    weight = np.ones((4, 8), np.float32)
    flipped = weight.copy()
    flipped.view(np.uint32)[3, 7] ^= 1 << 20
    one, two = digests(weight), digests(flipped)
    assert all(one[key] != two[key] for key in one)
