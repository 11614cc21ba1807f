"""What rounding loses of a typical token, and that measuring it changes nothing."""

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from patch_compile.io.onnx_model import load_model, save_model
from patch_compile.passes.observed import observe
from patch_compile.sensitivity import Activation, sensitivities
from tests.support import run_ort


def _activation(rng: np.random.Generator, outlier: float) -> NDArray[np.float64]:
    """Tokens of unit scale, (200, 64), of which one has one large element."""
    x = rng.standard_normal((200, 64))
    x[7, 3] = outlier
    return x


def _rounded(x: NDArray[np.float64], kind: str) -> NDArray[np.float64]:
    """Rounded with one scale that clips nothing: numpy's and ml_dtypes' own rounding."""
    if kind == "int8":
        scale = np.abs(x).max() / 127
        return np.round(x / scale) * scale
    scale = np.abs(x).max() / 448
    return (x / scale).astype(ml_dtypes.float8_e4m3fn).astype(np.float64) * scale


@pytest.mark.parametrize("outlier", [5.0, 20.0, 60.0])
def test_the_error_is_what_rounding_to_int8_loses(
    rng: np.random.Generator, outlier: float
) -> None:
    x = _activation(rng, outlier)
    told = _told(x).error("int8")
    lost = np.linalg.norm(x - _rounded(x, "int8"), axis=1) / np.linalg.norm(x, axis=1)
    # The noise of rounding is uniform as long as steps are small against the values.
    assert told == pytest.approx(float(np.median(lost)), rel=0.1)


def test_beyond_all_steps_everything_is_lost(rng: np.random.Generator) -> None:
    x = _activation(rng, 1e5)
    lost = np.linalg.norm(x - _rounded(x, "int8"), axis=1) / np.linalg.norm(x, axis=1)
    assert (_told(x).error("int8"), float(np.median(lost))) == (1.0, 1.0)


def test_fp8_bears_outliers_that_int8_does_not(rng: np.random.Generator) -> None:
    x = _activation(rng, 1000.0)
    lost = np.linalg.norm(x - _rounded(x, "fp8"), axis=1) / np.linalg.norm(x, axis=1)
    assert _told(x).error("int8") == 1.0
    # What the numbers are too short for comes on top, see `Activation.error`.
    assert _told(x).error("fp8") < 0.01
    assert float(np.median(lost)) < 0.05


def test_what_is_zero_loses_nothing_and_what_is_mostly_zero_everything() -> None:
    assert Activation(0.0, 0.0).error("int8") == 0.0
    assert Activation(3.0, 0.0).error("int8") == 1.0


def _told(x: NDArray[np.float64]) -> Activation:
    return Activation(float(np.abs(x).max()), float(np.median(np.sqrt((x**2).mean(axis=1)))))


def _model(path: Path, weight: NDArray[np.float32], opset: int) -> Path:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", "t", 64])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", "t", 16])
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    tensors = [numpy_helper.from_array(weight, "w")]
    graph = helper.make_graph([node], "one", [x], [y], tensors)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8
    )
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("opset", [13, 20])
def test_products_are_measured_over_all_windows(
    tmp_path: Path, rng: np.random.Generator, opset: int
) -> None:
    weight = rng.standard_normal((64, 16)).astype(np.float32)
    model = _model(tmp_path / "m.onnx", weight, opset)
    x = _activation(rng, 50.0).astype(np.float32)
    feeds = [{"x": part[None]} for part in np.split(x, 2)]
    found = sensitivities(model, ["product"], feeds)["product"]
    for told, values in ((found.input, x), (found.output, x @ weight)):
        assert told.peak == pytest.approx(float(np.abs(values).max()), rel=1e-5)
        typical = np.median(np.sqrt((values**2).mean(axis=1)))
        assert told.typical == pytest.approx(float(typical), rel=1e-5)


def test_an_observed_model_computes_the_same(tmp_path: Path, rng: np.random.Generator) -> None:
    model = _model(tmp_path / "m.onnx", rng.standard_normal((64, 16)).astype(np.float32), 20)
    graph = load_model(model)
    product = next(node for node in graph.graph if node.op_type == "MatMul")
    observe(graph, [value for value in (product.inputs[0], *product.outputs) if value])
    (tmp_path / "o").mkdir()
    save_model(graph, tmp_path / "o" / "m.onnx")
    x = {"x": rng.standard_normal((1, 5, 64)).astype(np.float32)}
    before = run_ort(model, x, optimise=False)
    after = run_ort(tmp_path / "o" / "m.onnx", x, optimise=False)
    np.testing.assert_array_equal(after["y"], before["y"])
    assert len(after) == 5
