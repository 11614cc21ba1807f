"""Masks read off zeros are the masks that made the zeros."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patch_compile.io import stored_weight
from patch_compile.io.infer import infer_mask, infer_masks
from patch_compile.io.onnx_model import load_model
from patch_compile.io.stored_weight import StoredWeight
from patch_compile.tiles.geometry import Geometry
from tests.support import FLOATS, Linear, geometries, linear_model, random_mask, random_weight


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 24),
    st.integers(1, 12).map(lambda groups: 4 * groups),
    geometries(),
    st.sampled_from(list(FLOATS)),
    st.booleans(),
    st.booleans(),
)
def test_zeros_give_back_the_mask_that_made_them(
    seed: int,
    n: int,
    k: int,
    geometry: Geometry,
    dtype: str,
    transposed: bool,
    negative: bool,
) -> None:
    rng = np.random.default_rng(seed)
    weight = random_weight(rng, n, k, dtype)
    mask = random_mask(rng, "a.weight", weight, geometry.grid((n, k)), with_digests=False)
    zero = np.array(-0.0 if negative else 0.0, weight.dtype)
    masked = np.where(mask.keep(), weight, zero)
    array = np.ascontiguousarray(masked.T) if transposed else masked
    found = infer_mask("a.weight", StoredWeight(ir.tensor(array), transposed), geometry)
    found.check()
    np.testing.assert_array_equal(found.keep(), mask.keep())
    np.testing.assert_array_equal(found.dense, mask.dense)
    assert (found.grid, found.geometry) == (mask.grid, str(geometry))


def test_dense_tile_with_some_zeros_stays_dense_and_keeps_them_zero() -> None:
    weight = np.ones((8, 16), np.float32)
    weight[3, 9] = 0
    found = infer_mask("w", StoredWeight(ir.tensor(weight), False), Geometry(8, 8))
    assert found.dense.tolist() == [[True, True]]
    assert found.zeros() == 1


@pytest.mark.parametrize(("kept", "dense"), [(2, False), (3, True), (4, True)])
def test_tile_is_sparse_up_to_two_of_four(kept: int, dense: bool) -> None:
    weight = np.zeros((8, 16), np.float32)
    weight[5, 12 : 12 + kept] = 1
    found = infer_mask("w", StoredWeight(ir.tensor(weight), False), Geometry(8, 8))
    assert found.dense.tolist() == [[False, dense]]


def test_nan_is_no_zero() -> None:
    weight = np.full((2, 4), np.nan, np.float32)
    found = infer_mask("w", StoredWeight(ir.tensor(weight), False), Geometry(None, None))
    assert found.dense.all()
    assert found.zeros() == 0


@pytest.mark.parametrize("k", [1, 2, 3, 5, 6, 7, 9])
def test_in_features_of_any_number_are_read(k: int) -> None:
    weight = np.zeros((3, k), np.float32)
    weight[1, -1] = 1
    found = infer_mask("w", StoredWeight(ir.tensor(weight), False), Geometry(None, None))
    found.check()
    np.testing.assert_array_equal(found.keep(), weight != 0)


def test_masks_of_a_model_on_disk_are_read_when_they_are_wanted(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    weight = random_weight(rng, 16, 32)
    mask = random_mask(rng, "a", weight, "8x8")
    masked = np.where(mask.keep(), weight, np.float32(0))
    path = linear_model([Linear("a", masked)], tmp_path / "m.onnx", external=True)
    tensor = load_model(path).graph.initializers["a.weight"].const_value
    assert tensor is not None
    masks = infer_masks([("a", StoredWeight(tensor, True))], Geometry(8, 8))
    assert masks.made_by == {"method": "infer", "tile": "8x8"}
    np.testing.assert_array_equal(masks.weights["a"].keep(), mask.keep())
    np.testing.assert_array_equal(masks.weights["a"].dense, mask.dense)


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 40),
    st.integers(1, 70),
    st.booleans(),
    st.sampled_from([1, 100, 1000]),
)
def test_strips_of_any_height_give_the_same_bits(
    seed: int, n: int, k: int, transposed: bool, strip: int
) -> None:
    keep = np.random.default_rng(seed).random((n, k)) < 0.5
    array = keep.astype(np.float16)
    stored = np.ascontiguousarray(array.T) if transposed else array
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored_weight, "_STRIP_BYTES", strip)
        found = infer_mask("w", StoredWeight(ir.tensor(stored), transposed), Geometry(8, 8))
        bits = found.bits()
    np.testing.assert_array_equal(bits, np.packbits(keep, axis=1, bitorder="little"))


def test_progress_counts_every_weight() -> None:
    weights = [
        (name, StoredWeight(ir.tensor(np.ones((8, 8), np.float32)), True)) for name in "abc"
    ]
    seen: list[tuple[int, int, str]] = []
    made = infer_masks(weights, Geometry(8, 8), lambda *step: seen.append(step))
    assert list(made.weights) == ["a", "b", "c"]
    assert seen == [(i, 3, "inferring masks") for i in (1, 2, 3)]
