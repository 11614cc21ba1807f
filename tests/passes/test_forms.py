"""Every form in which a graph may hold the weight of a linear, in every opset from 13 on.

The graphs are made by hand and the reference is numpy: nothing of the rewrite is in either.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from patch_compile.compiler import Compiled, compile_model
from patch_compile.passes import sites
from patch_compile.recipe import CompileRecipe
from patch_compile.tiles.weight_mask import WeightMask
from patch_compile.verification import verify
from tests.support import (
    OLD_ONNXRUNTIME,
    masked_product,
    masks_of,
    random_mask,
    random_weight,
    run_ort,
)

N = K = 16
FC = "model.layers.0.mlp.fc.weight"
# onnxruntime 1.32 reads none newer.
OPSETS = range(13, 23 if OLD_ONNXRUNTIME else 25)
TOLERANCE = 1e-4

Weight = NDArray[np.float32]


def _node(kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs, [output], name=f"/{output}/{kind}", **attributes)


def _turn(source: str, output: str) -> onnx.NodeProto:
    return _node("Transpose", [source], output, perm=[1, 0])


def _gemm(weight: str, **attributes: Any) -> onnx.NodeProto:
    return _node("Gemm", ["x", weight, "bias"], "y", **attributes)


def _matmul(weight: str) -> list[onnx.NodeProto]:
    return [_node("MatMul", ["x", weight], "p"), _node("Add", ["p", "bias"], "y")]


# By form: whether the weight is stored (K, N), and the nodes.
FORMS: dict[str, tuple[bool, list[onnx.NodeProto]]] = {
    "matmul": (True, _matmul(FC)),
    "gemm": (True, [_gemm(FC)]),
    "gemm, transB": (False, [_gemm(FC, transB=1)]),
    "transposed": (False, [_turn(FC, "t"), *_matmul("t")]),
    "transposed, gemm transB": (True, [_turn(FC, "t"), _gemm("t", transB=1)]),
    "transposed twice": (True, [_turn(FC, "t"), _turn("t", "u"), *_matmul("u")]),
    "identity": (True, [_node("Identity", [FC], "i"), *_matmul("i")]),
    "identity, transposed": (
        False,
        [_node("Identity", [FC], "i"), _turn("i", "t"), *_matmul("t")],
    ),
    "transposed, identity, gemm": (
        False,
        [_turn(FC, "t"), _node("Identity", ["t"], "i"), _gemm("i")],
    ),
    "read three times": (
        True,
        [
            _node("MatMul", ["x", FC], "a"),
            _node("Identity", [FC], "i"),
            _node("MatMul", ["x", "i"], "b"),
            _node("MatMul", ["x", FC], "c"),
            _node("Sub", ["b", "c"], "none"),
            _node("Add", ["a", "none"], "p"),
            _node("Add", ["p", "bias"], "y"),
        ],
    ),
}
HOLDERS = ["initializer", "constant", "function"]


def build(
    path: Path, form: str, weight: Weight, bias: Weight, *, holder: str, opset: int
) -> Path:
    """A graph from x (rows, K) to y (rows, N) of this form."""
    transposed, nodes = FORMS[form]
    tensor = numpy_helper.from_array(
        np.ascontiguousarray(weight.T if transposed else weight), FC
    )
    tensors = [numpy_helper.from_array(bias, "bias")]
    opsets = [helper.make_opsetid("", opset)]
    functions = []
    if holder == "constant":
        nodes = [helper.make_node("Constant", [], [FC], value=tensor), *nodes]
    else:
        tensors.append(tensor)
    if holder == "function":
        local = helper.make_function("own", "Fc", ["x", FC, "bias"], ["y"], nodes, opsets)
        functions.append(local)
        nodes = [helper.make_node("Fc", ["x", FC, "bias"], ["y"], domain="own")]
        opsets = [*opsets, helper.make_opsetid("own", 1)]
    graph = helper.make_graph(
        nodes,
        "form",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", K])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", N])],
        tensors,
    )
    model = helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=10)
    onnx.save(model, path)
    return path


def _drawn(rng: np.random.Generator) -> tuple[WeightMask, Weight, Weight]:
    weight, bias = random_weight(rng, N, K), random_weight(rng, 1, N)[0]
    dense = np.array([[True], [False], [True], [False]])
    return random_mask(rng, FC, weight, "band:4", dense=dense), weight, bias


def check(
    folder: Path, form: str, holder: str, opset: int, lowering: Any = "columns", seed: int = 0
) -> Compiled:
    rng = np.random.default_rng(seed)
    mask, weight, bias = _drawn(rng)
    path = build(folder / "m.onnx", form, weight, bias, holder=holder, opset=opset)
    recipe = CompileRecipe(lowering=lowering, min_gain=0.0)
    compiled = compile_model(path, masks_of(mask), recipe)
    out = compiled.save(folder / "out")
    x = rng.standard_normal((3, K)).astype(np.float32)
    expected = masked_product(x, weight, mask.keep()) + bias
    for optimise in (False, True):
        found = run_ort(out, {"x": x}, optimise=optimise)["y"]
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
    (bound,) = compiled.report.weights
    (told,) = json.loads(out.with_name("report.json").read_text("utf-8"))["weights"]
    assert (bound.masks, bound.bound_by, told["digest"]) == ((FC,), "name", "match")
    assert bound.lowering == lowering
    assert next((o.domain, o.version) for o in onnx.load(out).opset_import) == ("", opset)
    return compiled


@pytest.mark.parametrize("form", FORMS)
def test_form_binds_compiles_and_verifies(tmp_path: Path, form: str) -> None:
    compiled = check(tmp_path, form, "initializer", 20)
    assert compiled.report.totals["eligible"] > 0
    mask, _, _ = _drawn(np.random.default_rng(0))
    found = verify(tmp_path / "m.onnx", tmp_path / "out" / "compiled.onnx", masks_of(mask))
    assert found.passed


@settings(max_examples=25)
@given(
    st.sampled_from(sorted(FORMS)),
    st.sampled_from(HOLDERS),
    st.sampled_from(OPSETS),
    st.sampled_from(["columns", "dense"]),
    st.integers(0, 99),
)
def test_any_form_in_any_opset_computes_the_masked_product(
    form: str, holder: str, opset: int, lowering: str, seed: int
) -> None:
    with TemporaryDirectory() as folder:
        check(Path(folder), form, holder, opset, lowering, seed)


def test_a_turn_that_is_not_counted_would_be_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted fault: of two Transposes the walk back counts one."""
    found = sites._operand

    def once(node: Any) -> Any:
        value, turned = found(node)
        return value, turned or node.inputs[1].producer() is not None

    monkeypatch.setattr(sites, "_operand", once)
    # Reading the weight the wrong way round fails before there are numbers to compare.
    seen = r"differs from the weight|[Nn]ot equal|index out of range"
    with pytest.raises(Exception, match=seen):
        check(tmp_path, "transposed twice", "initializer", 20)
