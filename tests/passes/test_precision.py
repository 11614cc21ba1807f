"""A cast graph computes what the float32 graph does, to the precision of its type."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from patch_compile.compiler import compile_model
from patch_compile.errors import ModelError
from patch_compile.io.cast_tensor import CastTensor
from patch_compile.io.onnx_model import load_model
from patch_compile.io.save_model import save_model
from patch_compile.passes import precision
from patch_compile.passes.legal import sparse_pieces_are_24
from patch_compile.passes.precision import cast_model
from patch_compile.recipe import CompileRecipe
from patch_compile.verification import verify
from tests.support import (
    Linear,
    band_mask,
    digests_said,
    linear_model,
    masks_of,
    random_weight,
    run_ort,
    said,
)

WIDTH = 256


def _block(folder: Path, rng: np.random.Generator) -> Path:
    """A norm as exporters write it, a product, a softmax, and rotary angles.

    x: float32 (B, T, WIDTH); pos: float32 (B, T).
    """
    weight = rng.uniform(-0.1, 0.1, (WIDTH, WIDTH)).astype(np.float32)
    tensors = {
        "two": np.float32(2.0),
        "eps": np.float32(1e-5),
        "w": weight,
        "axes": np.array([-1], np.int64),
        "last": np.array([2], np.int64),
        "rate": np.linspace(1.0, 0.1, WIDTH, dtype=np.float32)[None, :],
        "fill": np.float32(-3e38),
    }
    node = helper.make_node
    nodes = [
        node("Pow", ["x", "two"], ["square"], name="pow"),
        node("ReduceMean", ["square", "axes"], ["mean"], name="mean_"),
        node("Add", ["mean", "eps"], ["safe"], name="add_eps"),
        node("Sqrt", ["safe"], ["root"], name="sqrt"),
        node("Div", ["x", "root"], ["normed"], name="div"),
        node("MatMul", ["normed", "w"], ["product"], name="product_"),
        node("Softmax", ["product"], ["share"], name="softmax", axis=-1),
        node("Unsqueeze", ["pos", "last"], ["column"], name="unsqueeze"),
        node("MatMul", ["column", "rate"], ["angle"], name="angle_"),
        node("Cos", ["angle"], ["cosine"], name="cos"),
        node("Mul", ["product", "cosine"], ["turned"], name="turn"),
        node("Add", ["turned", "fill"], ["filled"], name="fill_"),
        node("Max", ["turned", "filled"], ["y"], name="max"),
    ]
    values = helper.make_tensor_value_info
    kind = TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "block",
        [values("x", kind, ["b", "t", WIDTH]), values("pos", kind, ["b", "t"])],
        [values("y", kind, ["b", "t", WIDTH]), values("share", kind, ["b", "t", WIDTH])],
        [numpy_helper.from_array(np.asarray(v), name) for name, v in tensors.items()],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    onnx.checker.check_model(model)
    model = onnx.shape_inference.infer_shapes(model)
    path = folder / "block.onnx"
    onnx.save(
        model, path, save_as_external_data=True, location="block.data", size_threshold=1024
    )
    return path


def _feeds(rng: np.random.Generator) -> dict[str, NDArray[Any]]:
    # 400 squared is more than float16 holds, and 3001 is no float16.
    x = 400.0 * rng.standard_normal((1, 3, WIDTH)).astype(np.float32)
    return {"x": x, "pos": np.array([[0, 17, 3001]], np.float32)}


def _cast(path: Path, dtype: Any) -> tuple[ir.Model, Path]:
    model = cast_model(load_model(path), dtype)
    target = path.with_name("cast.onnx")
    save_model(model, target)
    onnx.checker.check_model(str(target), full_check=True)
    return load_model(target), target


def _relative(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("optimise", [False, True])
def test_a_cast_graph_computes_the_same(
    tmp_path: Path, rng: np.random.Generator, optimise: bool
) -> None:
    path = _block(tmp_path, rng)
    _, target = _cast(path, "fp16")
    feeds = _feeds(rng)
    wanted, found = (run_ort(p, feeds, optimise=optimise) for p in (path, target))
    for name in ("y", "share"):
        assert found[name].dtype == np.float32
        assert _relative(found[name], wanted[name]) < 4e-3


@pytest.mark.parametrize("promise", ["_kept_nodes", "_drop_round_trips"])
def test_without_either_promise_norms_or_angles_break(
    tmp_path: Path,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    promise: str,
) -> None:
    monkeypatch.setattr(precision, promise, lambda *_: [])
    path = _block(tmp_path, rng)
    _, target = _cast(path, "fp16")
    feeds = _feeds(rng)
    wanted, found = (run_ort(p, feeds, optimise=False)["y"] for p in (path, target))
    assert not _relative(found, wanted) < 0.1


@pytest.mark.parametrize(
    ("dtype", "kind"), [("fp16", ir.DataType.FLOAT16), ("bf16", ir.DataType.BFLOAT16)]
)
def test_products_are_cast_and_softmax_norm_and_angles_are_not(
    tmp_path: Path, rng: np.random.Generator, dtype: str, kind: ir.DataType
) -> None:
    model, _ = _cast(_block(tmp_path, rng), dtype)
    types = {
        node.name: node.outputs[0].dtype for node in model.graph if node.op_type != "Cast"
    }
    kept = {name for name, found in types.items() if found == ir.DataType.FLOAT}
    assert kept == {"pow", "mean_", "add_eps", "sqrt", "softmax", "angle_", "cos", "max"} | {
        "unsqueeze"
    }
    assert types["product_"] == types["turn"] == kind


def test_weights_are_rounded_once(tmp_path: Path, rng: np.random.Generator) -> None:
    path = _block(tmp_path, rng)
    original = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    model, _ = _cast(path, "bf16")
    stored = model.graph.initializers
    wanted = original["w"].astype(ml_dtypes.bfloat16)
    weight = stored["w"].const_value
    assert weight is not None
    np.testing.assert_array_equal(weight.numpy(), wanted)
    # The fill is no float16; by way of float16 it would come out as -65504.
    fill = stored["fill"].const_value
    assert fill is not None
    assert float(fill.numpy()) == float(np.float32(-3e38).astype(ml_dtypes.bfloat16))


@pytest.mark.parametrize("as_tensor", [True, False])
def test_constants_of_one_element_are_cast_as_their_reader_is(
    tmp_path: Path, rng: np.random.Generator, as_tensor: bool
) -> None:
    """Twice a product, which is cast, and the root of x and an epsilon, which is not."""
    weight = random_weight(rng, WIDTH, WIDTH)
    path = linear_model([Linear("a", weight)], tmp_path / "m.onnx")
    model = onnx.load(path)
    for name, number in (("two", 2.0), ("eps", 1e-12)):
        tensor = numpy_helper.from_array(np.array(number, np.float32), name)
        value: dict[str, Any] = {"value": tensor} if as_tensor else {"value_float": number}
        model.graph.node.append(helper.make_node("Constant", [], [name], **value))
    node = helper.make_node
    model.graph.node.append(node("Mul", ["y_a", "two"], ["twice"]))
    model.graph.node.append(node("Pow", ["x", "two"], ["square"]))
    model.graph.node.append(node("Add", ["square", "eps"], ["safe"]))
    model.graph.node.append(node("Sqrt", ["safe"], ["root"]))
    model.graph.node.append(node("Div", ["x", "root"], ["sign"]))
    for name in ("twice", "sign"):
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    onnx.save(model, path)
    _, target = _cast(path, "fp16")
    feeds = {"x": 1e-5 * rng.choice([-1.0, 1.0], (1, 3, WIDTH)).astype(np.float32)}
    wanted, found = (run_ort(p, feeds, optimise=False) for p in (path, target))
    for name in ("twice", "sign"):
        assert _relative(found[name], wanted[name]) < 2e-2


def test_large_weights_stay_in_their_file(tmp_path: Path, rng: np.random.Generator) -> None:
    model = cast_model(load_model(_block(tmp_path, rng)), "fp16")
    weight = model.graph.initializers["w"].const_value
    assert isinstance(weight, CastTensor)
    assert isinstance(weight.source, ir.ExternalTensor)


def test_the_interface_is_kept(tmp_path: Path, rng: np.random.Generator) -> None:
    path = _block(tmp_path, rng)
    before, (after, _) = load_model(path), _cast(path, "fp16")
    for side in ("inputs", "outputs"):
        was, now = (getattr(model.graph, side) for model in (before, after))
        assert [(v.name, v.dtype) for v in was] == [(v.name, v.dtype) for v in now]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_graph_that_is_cast_already_is_refused(
    tmp_path: Path, rng: np.random.Generator, dtype: str
) -> None:
    path = linear_model([Linear("a", random_weight(rng, 8, 8, dtype))], tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=rf"weights are {dtype.upper()}; expected") as caught:
        cast_model(load_model(path), "fp16")
    said(caught)


@pytest.mark.parametrize("form", ["matmul", "gemm_b", "constant", "transpose"])
def test_a_compile_may_cast_first(tmp_path: Path, rng: np.random.Generator, form: str) -> None:
    weight = random_weight(rng, 128, 256)
    # A kept weight that float16 rounds to zero: 2:4 allows more zeros, never fewer.
    weight[0, 0] = 1e-9
    lead = ("batch",)
    path = tmp_path / "m.onnx"
    linear_model([Linear("a", weight, form)], path, lead=lead, external=form != "constant")
    masks = masks_of(band_mask(rng, "a.weight", weight))
    compiled = compile_model(path, masks, CompileRecipe(dtype="fp16"))
    assert compiled.report.weights[0].dtype == "float16"
    target = compiled.save(tmp_path / "out")
    assert digests_said(target) == {"match"}
    assert sparse_pieces_are_24(load_model(target)) == []
    found = verify(path, target, masks)
    assert found.passed
    assert found.comparison.outputs[0].rtol == 2e-2


def test_a_cast_model_does_not_overwrite_its_source(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    weight = random_weight(rng, 128, 256)
    path = linear_model([Linear("a", weight)], tmp_path / "compiled.onnx", external=True)
    masks = masks_of(band_mask(rng, "a.weight", weight))
    with pytest.raises(ModelError, match=r"holds the input itself"):
        compile_model(path, masks, CompileRecipe(dtype="bf16")).save(tmp_path)
