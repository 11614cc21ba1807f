"""Inputs and outputs keep their types, or the cast is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from patch_compile.compiler import compile_model
from patch_compile.errors import InternalError, ModelError
from patch_compile.io.onnx_model import load_model
from patch_compile.passes.legal import Interface, check_legal
from patch_compile.passes.precision import cast_model
from patch_compile.recipe import CompileRecipe
from tests.support import band_mask, masked_product, masks_of, random_weight, run_ort, said

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
K, N = 128, 256


def _cast(source: str, target: str, kind: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"to_{target}", to=kind)


def _product(source: str, target: str) -> onnx.NodeProto:
    return helper.make_node("MatMul", [source, "w"], [target], name="product")


CAST_AT_THE_EDGES = [_cast("x", "a", FLOAT), _product("a", "b"), _cast("b", "y", HALF)]
CAST_INSIDE = [_product("x", "a"), _cast("a", "b", HALF), _cast("b", "y", FLOAT)]


def _model(path: Path, weight: NDArray[Any], nodes: list[onnx.NodeProto], kind: int) -> Path:
    """x (b, K) and y (b, N), of type `kind`, about a product by W^T in float32."""
    x, y = (helper.make_tensor_value_info(n, kind, ["b", k]) for n, k in (("x", K), ("y", N)))
    stored = numpy_helper.from_array(np.ascontiguousarray(weight.T), "w")
    graph = helper.make_graph(nodes, "g", [x], [y], [stored])
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    ("nodes", "kind", "name"),
    [(CAST_AT_THE_EDGES, HALF, "x"), (CAST_INSIDE, FLOAT, "b")],
    ids=["edges", "inside"],
)
def test_bf16_of_a_graph_with_float16_is_refused(
    tmp_path: Path,
    rng: np.random.Generator,
    nodes: list[onnx.NodeProto],
    kind: int,
    name: str,
) -> None:
    path = _model(tmp_path / "m.onnx", random_weight(rng, N, K), nodes, kind)
    with pytest.raises(ModelError) as caught:
        cast_model(load_model(path), "bf16")
    assert said(caught) == (
        f"dtype | is bf16, but '{name}' is FLOAT16; expected FLOAT alone; choose --dtype "
        "fp16, or export the model as fp32"
    )


def test_fp16_keeps_float16_inputs_and_outputs(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    weight = random_weight(rng, N, K)
    path = _model(tmp_path / "m.onnx", weight, CAST_AT_THE_EDGES, HALF)
    mask = band_mask(rng, "w", weight)
    compiled = compile_model(path, masks_of(mask), CompileRecipe(dtype="fp16"))
    x = rng.standard_normal((3, K)).astype(np.float16)
    found = run_ort(compiled.save(tmp_path / "out"), {"x": x}, optimise=False)["y"]
    assert found.dtype == np.float16
    # float16 rounds W, and sums of 128 products of numbers about 1.
    np.testing.assert_allclose(found, masked_product(x, weight, mask.keep()), atol=0.1)


def test_a_sequence_whose_type_would_change_is_refused(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    path = tmp_path / "m.onnx"
    _model(path, random_weight(rng, N, K), [_product("x", "y")], FLOAT)
    model = onnx.load(path)
    model.graph.node.append(helper.make_node("SequenceConstruct", ["y"], ["all"]))
    model.graph.output.append(helper.make_tensor_sequence_value_info("all", FLOAT, None))
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    with pytest.raises(ModelError) as caught:
        cast_model(load_model(path), "fp16")
    assert said(caught) == (
        "dtype | is fp16, but 'all' was FLOAT and is FLOAT16; expected inputs and outputs to "
        "keep their types; leave --dtype out"
    )


def test_a_rewrite_that_changes_the_type_of_an_output_is_a_bug(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    path = _model(tmp_path / "m.onnx", random_weight(rng, N, K), [_product("x", "y")], FLOAT)
    model = load_model(path)
    before = Interface.of(model)
    check_legal(model, before)
    model.graph.outputs[0].type = ir.TensorType(ir.DataType.FLOAT16)
    with pytest.raises(InternalError, match="'y' was FLOAT and is FLOAT16"):
        check_legal(model, before)


@pytest.mark.parametrize("name", ["w", "x"])
def test_an_output_that_no_node_makes_is_refused(
    tmp_path: Path, rng: np.random.Generator, name: str
) -> None:
    """Its cast would have its name, and the weight or the input has it already."""
    path = tmp_path / "m.onnx"
    _model(path, random_weight(rng, N, K), [_product("x", "y")], FLOAT)
    model = onnx.load(path)
    shape: list[int | str] = [K, N] if name == "w" else ["b", K]
    model.graph.output.append(helper.make_tensor_value_info(name, FLOAT, shape))
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    with pytest.raises(ModelError) as caught:
        cast_model(load_model(path), "fp16")
    assert said(caught) == (
        f"dtype | is fp16, but output '{name}' is a weight or an input; expected outputs "
        "that nodes make; export it without, or leave --dtype out"
    )
