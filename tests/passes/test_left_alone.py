"""Weights that cannot be lowered are left as they are, and their masks say why."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from patch_compile.compiler import compile_model
from patch_compile.recipe import CompileRecipe
from patch_compile.tiles.weight_mask import WeightMask
from tests.support import masks_of, random_mask, random_weight, run_ort


def small_model(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    tensors: dict[str, Any],
    inputs: dict[str, Any] | None = None,
) -> Path:
    """A graph over x (2, 32), with the output y."""
    info = helper.make_tensor_value_info
    values = [info("x", TensorProto.FLOAT, [2, 32])]
    for name, array in (inputs or {}).items():
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        values.append(info(name, kind, array.shape))
    graph = helper.make_graph(
        nodes,
        "small",
        values,
        [info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in tensors.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


W = random_weight(np.random.default_rng(0), 16, 32)
FC = "model.layers.0.fc.weight"


def fc_mask() -> WeightMask:
    return random_mask(np.random.default_rng(0), FC, W, "weight", dense=np.array([[False]]))


def int4(path: Path) -> tuple[Path, dict[str, Any]]:
    packed = np.random.default_rng(0).integers(0, 256, (16, 1, 16)).astype(np.uint8)
    node = helper.make_node(
        "MatMulNBits",
        ["x", "w_Q4", "w_scales"],
        ["y"],
        domain="com.microsoft",
        name="/model/layers.0/fc/MatMul_Q4",
        K=32,
        N=16,
        bits=4,
        block_size=32,
    )
    scales = np.ones(16, np.float32)
    return small_model(path, [node], {"w_Q4": packed, "w_scales": scales}), {}


def int8(path: Path) -> tuple[Path, dict[str, Any]]:
    nodes = [
        helper.make_node("DequantizeLinear", ["w_q", "s"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["y"], name="/model/layers.0/fc/MatMul"),
    ]
    tensors = {"w_q": (10 * W.T).astype(np.int8), "s": np.float32(0.1)}
    return small_model(path, nodes, tensors), {}


def in_branch(path: Path) -> tuple[Path, dict[str, Any]]:
    y = helper.make_tensor_value_info("b", TensorProto.FLOAT, None)
    product = helper.make_node("MatMul", ["x", "w"], ["b"], name="/model/layers.0/fc/MatMul")
    then = helper.make_graph([product], "then", [], [y])
    zero = helper.make_node("MatMul", ["x", "w2"], ["b"], name="/model/layers.0/fc2/MatMul")
    other = helper.make_graph([zero], "else", [], [y])
    node = helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other)
    tensors = {"w": W.T.copy(), "w2": W.T.copy()}
    condition = {"c": np.array(True)}
    return small_model(path, [node], tensors, condition), condition


def replaceable(path: Path) -> tuple[Path, dict[str, Any]]:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="/model/layers.0/fc/MatMul")
    return small_model(path, [node], {"w": W.T.copy()}, {"w": W.T}), {}


def three_axes(path: Path) -> tuple[Path, dict[str, Any]]:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="/model/layers.0/fc/MatMul")
    return small_model(path, [node], {"w": W.T[None].copy()}), {}


def scaled(path: Path) -> tuple[Path, dict[str, Any]]:
    node = helper.make_node(
        "Gemm", ["x", "w"], ["y"], name="/model/layers.0/fc/Gemm", transB=1, alpha=0.5
    )
    return small_model(path, [node], {"w": W}), {}


def in_loop(path: Path) -> tuple[Path, dict[str, Any]]:
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["b"], name="/model/layers.0/fc/MatMul"),
            helper.make_node("Identity", ["go"], ["on"]),
        ],
        "body",
        [info("i", TensorProto.INT64, []), info("go", TensorProto.BOOL, [])],
        [info("on", TensorProto.BOOL, []), info("b", TensorProto.FLOAT, None)],
    )
    node = helper.make_node("Loop", ["n", "c"], ["y"], body=body)
    tensors = {"w": W.T.copy(), "n": np.array(3), "c": np.array(True)}
    return small_model(path, [node], tensors), {}


def read_by(kind: str, **attributes: Any) -> Any:
    """A graph in which another operator than MatMul or Gemm reads the weight."""
    name = f"/model/layers.0/fc/{kind}"

    def build(path: Path) -> tuple[Path, dict[str, Any]]:
        node = helper.make_node(kind, ["x", "w"], ["y"], name=name, **attributes)
        return small_model(path, [node], {"w": W.T.copy()}), {}

    return build


def on_the_left(path: Path) -> tuple[Path, dict[str, Any]]:
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["w", "t"], ["y"], name="/model/layers.0/fc/MatMul"),
    ]
    return small_model(path, nodes, {"w": W}), {}


def cast(path: Path) -> tuple[Path, dict[str, Any]]:
    nodes = [
        helper.make_node("Cast", [FC], ["w"], name="widen", to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "w"], ["y"], name="/model/layers.0/fc/MatMul"),
    ]
    return small_model(path, nodes, {FC: W.T.astype(np.float16)}), {}


def read_twice(path: Path, *, turned: bool = False) -> tuple[Path, dict[str, Any]]:
    """An output head tied to an embedding: a mask of the one is none of the other."""
    read = [
        helper.make_node("Gather", ["w", "i"], ["e"], name="embed"),
        helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
    ]
    nodes = [
        *read[: 1 + turned],
        helper.make_node(
            "MatMul", ["x", "t" if turned else "w"], ["z"], name="/model/layers.0/fc/MatMul"
        ),
        helper.make_node("ReduceSum", ["e"], ["s"], keepdims=0),
        helper.make_node("Add", ["z", "s"], ["y"]),
    ]
    stored = W if turned else W.T.copy()
    return small_model(path, nodes, {"w": stored, "i": np.array([1, 3])}), {}


def read_by_the_caller(path: Path) -> tuple[Path, dict[str, Any]]:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="/model/layers.0/fc/MatMul")
    small_model(path, [node], {"w": W.T.copy()})
    model = onnx.load(path)
    model.graph.output.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [32, 16]))
    onnx.save(model, path)
    return path, {}


ELSEWHERE = (
    "; a mask is applied where a MatMul or Gemm multiplies by the weight from the right"
)


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (int4, "element type UINT8 is not a float of 16 or 32 bits"),
        (int8, "element type INT8 is not a float of 16 or 32 bits"),
        (in_branch, "'/model/layers.0/fc/MatMul' lies in a branch or loop body"),
        (replaceable, "a graph input may replace this weight; take it off the graph's inputs"),
        (three_axes, "has 3 axes, not 2"),
        (scaled, "Gemm scales by alpha = 0.5"),
        (in_loop, "'/model/layers.0/fc/MatMul' lies in a branch or loop body"),
        (
            read_by("Einsum", equation="mk,kn->mn"),
            f"is read by Einsum '/model/layers.0/fc/Einsum'{ELSEWHERE}",
        ),
        (
            read_by("FusedMatMul", domain="com.microsoft"),
            f"is read by FusedMatMul '/model/layers.0/fc/FusedMatMul'{ELSEWHERE}",
        ),
        (on_the_left, f"is read by MatMul '/model/layers.0/fc/MatMul'{ELSEWHERE}"),
        (cast, f"is read by Cast 'widen'{ELSEWHERE}"),
        (read_twice, "is read by Gather 'embed' as well"),
        (partial(read_twice, turned=True), "is read by Gather 'embed' as well"),
        (read_by_the_caller, "is read by the graph's caller as well"),
    ],
)
def test_mask_of_a_weight_that_cannot_be_lowered_is_left_alone_with_the_reason(
    tmp_path: Path,
    build: Callable[[Path], tuple[Path, dict[str, Any]]],
    reason: str,
) -> None:
    path, extra = build(tmp_path / "model.onnx")
    compiled = compile_model(path, masks_of(fc_mask()))
    assert compiled.report.weights == ()
    assert compiled.report.left_alone[FC] == reason
    x = np.random.default_rng(0).standard_normal((2, 32)).astype(np.float32)
    out = compiled.save(tmp_path / "out")
    expected = run_ort(path, {"x": x, **extra}, optimise=False)
    found = run_ort(out, {"x": x, **extra}, optimise=False)
    np.testing.assert_array_equal(found["y"], expected["y"])


def test_zeros_that_a_shared_weight_has_lose_nothing_for_any_reader(tmp_path: Path) -> None:
    path, _ = read_twice(tmp_path / "model.onnx")
    model = onnx.load(path)
    kept = numpy_helper.to_array(model.graph.initializer[0]) * fc_mask().keep().T
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(kept.astype(np.float32), "w"))
    onnx.save(model, path)
    compiled = compile_model(path, "infer", CompileRecipe(tile="weight"))
    assert [weight.lowering for weight in compiled.report.weights] == ["whole"]
    x = np.random.default_rng(0).standard_normal((2, 32)).astype(np.float32)
    out = run_ort(compiled.save(tmp_path / "out"), {"x": x}, optimise=False)
    expected = run_ort(path, {"x": x}, optimise=False)
    np.testing.assert_allclose(out["y"], expected["y"], rtol=1e-5)
