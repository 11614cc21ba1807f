"""A constant that is a graph input too may be replaced: it is not cut."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from patch_compile.compiler import compile_model
from patch_compile.passes.attention import Whole, find_attention
from patch_compile.passes.constants import fixed_tensor
from patch_compile.passes.regions import Uncut, find_region
from patch_compile.recipe import CompileRecipe
from tests.passes.heads import Heads, tied_heads
from tests.passes.mlp import Mlp, tied_masks
from tests.support import run_ort

# float32 sums of at most 40 products of numbers below 8, twice in a row, in another order;
# outputs reach some hundreds.
RTOL, ATOL = 2e-5, 2e-3

DENSE = np.array([False, True, False, True, False])


def make_inputs(path: Path, names: Sequence[str]) -> Path:
    """Lists initializers of a model among its graph inputs as well."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name in names:
            info = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            model.graph.input.append(info)
    onnx.save(model, path)
    return path


def last_product(path: Path) -> ir.Node:
    model = ir.load(path)
    return [node for node in model.graph if node.op_type in ("MatMul", "Gemm")][-1]


@pytest.mark.parametrize("lowering", ["branches", "sink-order"])
def test_bias_that_a_caller_gives_is_added(tmp_path: Path, lowering: str) -> None:
    rng = np.random.default_rng(0)
    mlp = Mlp(16, 40, "relu", bias=True)
    arrays = mlp.arrays(rng)
    masks = tied_masks(rng, mlp, arrays, 8, DENSE)
    path = make_inputs(mlp.save(tmp_path / "model.onnx", arrays), ["gate.bias"])
    recipe = CompileRecipe(lowering=lowering, min_gain=0.0)  # type: ignore[arg-type]
    compiled = compile_model(path, masks, recipe)
    out = compiled.save(tmp_path / "out")
    x = rng.standard_normal((2, 3, 16)).astype(np.float32)
    keeps = {name: mask.keep() for name, mask in masks.weights.items()}
    for bias in (arrays["gate.bias"], arrays["gate.bias"] + 5):
        found = run_ort(out, {"x": x, "gate.bias": bias}, optimise=True)["y"]
        expected = mlp.reference(x, {**arrays, "gate.bias": bias}, keeps)
        np.testing.assert_allclose(found, expected, rtol=RTOL, atol=ATOL)
    reasons = {weight.reason for weight in compiled.report.weights}
    why = "the operations between also read 'gate.bias', which an input may replace"
    assert reasons == {f"'{lowering}' was forced but {why}"}


@pytest.mark.parametrize("named", ["flat_inner", "gate.bias"])
def test_operand_that_a_caller_gives_stops_the_walk(tmp_path: Path, named: str) -> None:
    mlp = Mlp(16, 40, "relu", gated=False, bias=True, products="Gemm", reshaped=True)
    arrays = mlp.arrays(np.random.default_rng(0))
    if named == "gate.bias":
        mlp = replace(mlp, products="MatMul")
    path = mlp.save(tmp_path / "model.onnx", arrays)
    assert not isinstance(find_region(last_product(path)), Uncut | None)
    assert isinstance(find_region(last_product(make_inputs(path, [named]))), Uncut | None)


@pytest.mark.parametrize("named", ["q.bias", "slopes"])
def test_constant_of_heads_that_a_caller_gives_is_refused(tmp_path: Path, named: str) -> None:
    heads = Heads(bias=True, slopes=True)
    arrays = heads.arrays(np.random.default_rng(0))
    path = make_inputs(heads.save(tmp_path / "model.onnx", arrays), [named])
    whole = find_attention(last_product(path))
    assert isinstance(whole, Whole)
    assert f"reads '{named}', which has a part for every head" in whole.reason


@pytest.mark.parametrize("named", ["start", "head", "share"])
def test_sizes_that_a_caller_gives_are_not_known(tmp_path: Path, named: str) -> None:
    heads = Heads(rotary=True)
    arrays = heads.arrays(np.random.default_rng(0))
    path = make_inputs(heads.save(tmp_path / "model.onnx", arrays), [named])
    assert isinstance(find_attention(last_product(path)), Whole)


def test_only_what_no_caller_replaces_is_fixed() -> None:
    tensor = numpy_helper.from_array(np.ones(3, np.float32), "a")
    other = numpy_helper.from_array(np.ones(3, np.float32), "b")
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [3]) for name in "bxy"]
    nodes = [
        helper.make_node("Constant", [], ["c"], value=tensor),
        helper.make_node("Sum", ["a", "b", "c", "x"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "g", info[:2], info[2:], [tensor, other])
    model = ir.serde.deserialize_model(helper.make_model(graph))
    values = [value for value in model.graph.node(1).inputs if value is not None]
    fixed = [value.name for value in values if fixed_tensor(value) is not None]
    assert fixed == ["a", "c"]


def test_attention_takes_the_bias_that_a_caller_gives(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    heads = Heads(bias=True)
    arrays = heads.arrays(rng)
    masks = tied_heads(rng, heads, arrays, np.array([True, False, True]))
    path = make_inputs(heads.save(tmp_path / "model.onnx", arrays), ["v.bias"])
    out = compile_model(path, masks, CompileRecipe(min_gain=0.0)).save(tmp_path / "out")
    given = {**heads.inputs(rng), "v.bias": arrays["v.bias"] + 5}
    keeps = {name: mask.keep() for name, mask in masks.weights.items()}
    expected = heads.reference(given, {**arrays, "v.bias": given["v.bias"]}, keeps)
    np.testing.assert_allclose(
        run_ort(out, given, optimise=True)["y"], expected, rtol=RTOL, atol=ATOL
    )
