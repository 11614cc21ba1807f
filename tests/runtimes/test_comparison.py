"""A comparison sees every planted difference, and NaN is one unless both sides have it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from patch_compile.errors import Mismatch
from patch_compile.recipe import VerifyRecipe
from patch_compile.runtimes import comparison
from patch_compile.runtimes.comparison import compare_arrays, compare_outputs
from patch_compile.runtimes.onnxruntime import open_session
from tests.runtimes.fakes import FakeSession
from tests.support import Linear, linear_model, random_weight

RECIPE = VerifyRecipe()


def _passed(reference: NDArray[Any], compiled: NDArray[Any]) -> bool:
    return compare_arrays("y", reference, compiled, RECIPE).passed


def test_equal_models_pass_and_a_planted_difference_fails(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    weight = random_weight(rng, 6, 8)
    changed = weight.copy()
    changed[2, 3] += 0.1
    paths = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    for path, values in zip(paths, (weight, changed), strict=True):
        linear_model([Linear("a", values)], path, lead=("batch",))
    reference, compiled = map(open_session, paths)
    feeds = {"x": np.ones((4, 8), np.float32)}
    assert compare_outputs(reference, reference, feeds, RECIPE).passed
    found = compare_outputs(reference, compiled, feeds, RECIPE)
    assert not found.passed
    # One weight differs by 0.1 and every input is 1; float32 rounds sums below 16.
    assert found.outputs[0].max_abs == pytest.approx(0.1, abs=1e-5)


def test_numbers_are_those_of_the_definition() -> None:
    reference = np.array([[3.0, 0.0], [0.0, 4.0]], np.float32)
    compiled = np.array([[3.0, 0.0], [4.5, 4.0]], np.float32)
    found = compare_arrays("y", reference, compiled, RECIPE)
    assert found.max_abs == 4.5
    assert found.relative == pytest.approx(4.5 / 5.0)
    assert found.argmax_agreement == 0.5
    assert (found.name, found.dtype, found.shape) == ("y", "float32", (2, 2))


def test_relative_error_alone_fails() -> None:
    reference = np.full(4, 1e-3, np.float32)
    found = compare_arrays("y", reference, reference * np.float32(1.01), RECIPE)
    assert found.max_abs < found.atol
    assert found.relative > found.rtol
    assert not found.passed


def test_absolute_error_alone_fails() -> None:
    reference = np.full(10_000, 100.0, np.float32)
    compiled = reference.copy()
    compiled[7] += 0.5
    found = compare_arrays("y", reference, compiled, RECIPE)
    assert found.relative < found.rtol
    assert found.max_abs > found.atol
    assert not found.passed


@pytest.mark.parametrize(
    ("dtype", "tolerances"),
    [("float32", (1e-2, 1e-4)), ("float16", (0.5, 2e-2)), ("int64", (0.0, 0.0))],
)
def test_tolerances_follow_the_element_type(
    dtype: str, tolerances: tuple[float, float]
) -> None:
    found = compare_arrays("y", np.ones(3, dtype), np.ones(3, dtype), RECIPE)
    assert (found.atol, found.rtol) == tolerances


@pytest.mark.parametrize("recipe", [VerifyRecipe(atol=0.0), VerifyRecipe(rtol=0.0)])
def test_recipe_overrides_tolerances_even_with_zero(recipe: VerifyRecipe) -> None:
    reference = np.ones(3, np.float32)
    nearly = np.nextafter(reference, np.float32(2))
    assert compare_arrays("y", reference, reference, recipe).passed
    assert compare_arrays("y", reference, nearly, RECIPE).passed
    assert not compare_arrays("y", reference, nearly, recipe).passed


def test_nan_on_one_side_fails() -> None:
    good = np.ones(5, np.float32)
    bad = good.copy()
    bad[2] = np.nan
    assert not _passed(good, bad)
    assert not _passed(bad, good)
    assert np.isnan(compare_arrays("y", good, bad, RECIPE).max_abs)


def test_nan_at_the_same_place_passes_and_hides_nothing() -> None:
    reference = np.array([1.0, np.nan, 3.0], np.float32)
    assert _passed(reference, reference.copy())
    assert not _passed(reference, np.array([1.0, np.nan, 3.5], np.float32))
    assert not _passed(reference, np.array([np.nan, 1.0, 3.0], np.float32))


def test_infinities_must_agree_in_sign_and_place() -> None:
    reference = np.array([1.0, -np.inf], np.float32)
    assert _passed(reference, reference.copy())
    for other in (np.inf, 0.0, np.nan):
        assert not _passed(reference, np.array([1.0, other], np.float32))


def test_integer_outputs_must_be_equal() -> None:
    assert _passed(np.array([1, 2]), np.array([1, 2]))
    assert not _passed(np.array([1, 2]), np.array([1, 3]))


@pytest.mark.parametrize(
    "other", [np.ones((2, 4), np.float32), np.ones((4, 2), np.float16), np.ones(8, np.float32)]
)
def test_other_shape_or_type_fails(other: NDArray[Any]) -> None:
    assert not _passed(np.ones((4, 2), np.float32), other)


def test_difference_from_zero_fails() -> None:
    found = compare_arrays("y", np.zeros(3, np.float32), np.full(3, 1e-3, np.float32), RECIPE)
    assert found.relative == np.inf
    assert not found.passed


def test_empty_and_scalar_outputs_have_no_argmax() -> None:
    for array in (np.zeros((0, 4), np.float32), np.array(2.0, np.float32)):
        found = compare_arrays("y", array, array, RECIPE)
        assert found.passed
        assert found.argmax_agreement is None


def test_every_chunk_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "_CHUNK", 4)
    reference = np.ones((2, 5), np.float32)
    for place in range(10):
        compiled = reference.copy()
        compiled.flat[place] = 2.0
        found = compare_arrays("y", reference, compiled, RECIPE)
        assert found.max_abs == 1.0
        assert found.relative == pytest.approx(np.sqrt(1 / 10))
    first = reference.copy()
    first.flat[0] = np.nan
    assert np.isnan(compare_arrays("y", reference, first, RECIPE).max_abs)


def test_other_outputs_are_a_mismatch() -> None:
    one = {"a": np.ones(2), "b": np.ones(2)}
    turned = {"b": np.ones(2), "a": np.ones(2)}
    with pytest.raises(Mismatch, match=r"outputs \| are b, a; expected a, b"):
        compare_outputs(FakeSession(outputs=one), FakeSession(outputs=turned), {}, RECIPE)


def test_json_needs_no_nan() -> None:
    outputs = {"a": np.ones(2, np.float32)}, {"a": np.array([1, np.nan], np.float32)}
    first, second = (FakeSession(outputs=o) for o in outputs)
    found = compare_outputs(first, second, {}, RECIPE)
    data = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert data["passed"] is False
    assert data["outputs"][0]["max_abs"] == "nan"
    assert data["outputs"][0]["passed"] is False
