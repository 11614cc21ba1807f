"""A cast reaches the weights of branches and functions, wherever their data lie."""

from collections.abc import Iterator
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
from patch_compile.passes.precision import cast_model
from patch_compile.recipe import CastType, CompileRecipe
from tests.support import (
    Linear,
    band_mask,
    linear_model,
    masked_product,
    masks_of,
    random_weight,
    run_ort,
    said,
)

K, N, WIDE = 8, 16, 1100
KINDS = {"fp16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}


def _branches(folder: Path, rng: np.random.Generator) -> Path:
    """x W, and where c holds that by U and plus v, else by another U and by two, Constants.

    x: float32 (b, K). All data but W's lie in a file; both U are large.
    """
    w, u, other = (
        rng.uniform(-1, 1, s).astype(np.float32) for s in ((K, N), *2 * [(N, WIDE)])
    )
    tensor, node, value = numpy_helper.from_array, helper.make_node, _value
    yes = helper.make_graph(
        [node("MatMul", ["xw", "u"], ["xwu"]), node("Add", ["xwu", "v"], ["yes"])],
        "yes",
        [],
        [value("yes", WIDE)],
        [tensor(u, "u"), tensor(np.linspace(-1, 1, WIDE, dtype=np.float32), "v")],
    )
    no = helper.make_graph(
        [
            node("Constant", [], ["o"], value=tensor(other, "o")),
            node("Constant", [], ["two"], value=tensor(np.full(1, 2.0, np.float32), "two")),
            node("MatMul", ["xw", "o"], ["xwo"]),
            node("Mul", ["xwo", "two"], ["no"]),
        ],
        "no",
        [],
        [value("no", WIDE)],
    )
    graph = helper.make_graph(
        [
            node("MatMul", ["x", "w"], ["xw"]),
            node("If", ["c"], ["y"], then_branch=yes, else_branch=no),
        ],
        "g",
        [value("x", K), helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
        [value("y", WIDE)],
        [tensor(w, "w")],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    onnx.checker.check_model(model, full_check=True)
    _move_out(list(_branch_tensors(model.graph.node[1])), folder)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return folder / "m.onnx"


def _value(name: str, width: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", width])


def _branch_tensors(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for body in node.attribute:
        yield from body.g.initializer
        yield from (a.t for inner in body.g.node for a in inner.attribute if a.HasField("t"))


def _move_out(tensors: list[onnx.TensorProto], folder: Path) -> None:
    """onnx's own writer leaves the tensors of branches where they are."""
    data = b""
    for tensor in tensors:
        place = {"location": "m.data", "offset": len(data), "length": len(tensor.raw_data)}
        data += tensor.raw_data
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, entry in place.items():
            tensor.external_data.add(key=key, value=str(entry))
    (folder / "m.data").write_bytes(data)


def _cast(path: Path, dtype: CastType) -> tuple[ir.Model, Path]:
    model, target = cast_model(load_model(path), dtype), path.with_name("cast.onnx")
    save_model(model, target)
    onnx.checker.check_model(str(target), full_check=True)
    return model, target


@pytest.mark.parametrize("holds", [True, False])
def test_branches_of_a_cast_graph_compute_the_same(
    tmp_path: Path, rng: np.random.Generator, holds: bool
) -> None:
    path = _branches(tmp_path, rng)
    _, target = _cast(path, "fp16")
    feeds: dict[str, NDArray[Any]] = {
        "x": rng.standard_normal((3, K)).astype(np.float32),
        "c": np.array(holds),
    }
    wanted, found = (run_ort(p, feeds, optimise=False)["y"] for p in (path, target))
    assert found.dtype == np.float32
    # Three roundings to float16 of sums of 8 and 16 products.
    assert np.linalg.norm(found - wanted) < 4e-3 * np.linalg.norm(wanted)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_weights_of_branches_are_rounded_once_and_large_ones_as_they_are_written(
    tmp_path: Path, rng: np.random.Generator, dtype: CastType
) -> None:
    path = _branches(tmp_path, rng)
    model, target = _cast(path, dtype)
    branches = onnx.load(path).graph.node[1]
    original = {t.name: numpy_helper.to_array(t) for t in _branch_tensors(branches)}
    stored = {v.name: v for v in load_model(target).graph.initializers.values()}
    for name in ("u", "v", "o"):
        lazy = isinstance(model.graph.initializers[name].const_value, CastTensor)
        assert lazy == (name != "v")
        weight = stored[name].const_value
        assert weight is not None
        np.testing.assert_array_equal(weight.numpy(), original[name].astype(KINDS[dtype]))


@pytest.mark.parametrize("operators", [("Relu", "Softmax"), ("Softmax", "Relu")])
def test_a_branch_with_an_operator_that_stays_float32_is_refused(
    tmp_path: Path, rng: np.random.Generator, operators: tuple[str, str]
) -> None:
    """The branch would read or make what only the main graph has."""
    path = linear_model([Linear("a", random_weight(rng, N, K))], tmp_path / "m.onnx", lead="b")
    first, second = operators
    nodes = [helper.make_node(first, ["y_a"], ["r"]), helper.make_node(second, ["r"], ["yes"])]
    yes = helper.make_graph(nodes, "yes", [], [_value("yes", N)])
    other = [helper.make_node("Relu", ["y_a"], ["no"])]
    no = helper.make_graph(other, "no", [], [_value("no", N)])
    model = onnx.load(path)
    model.graph.node.append(
        helper.make_node("If", ["c"], ["y"], then_branch=yes, else_branch=no)
    )
    model.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    model.graph.output.append(_value("y", N))
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    with pytest.raises(ModelError, match="in a branch or loop body, meets") as caught:
        cast_model(load_model(path), "fp16")
    said(caught)


def _two_calls(path: Path, weight: NDArray[Any]) -> Path:
    """y = x W^T + z W^T, by two calls of a function that holds W."""
    stored = numpy_helper.from_array(np.ascontiguousarray(weight.T), "w")
    body = [
        helper.make_node("Constant", [], ["w"], value=stored),
        helper.make_node("MatMul", ["a", "w"], ["o"], name="product"),
    ]
    opset = helper.make_opsetid("", 20)
    function = helper.make_function("local", "F", ["a"], ["o"], body, [opset])
    nodes = [helper.make_node("F", [n], [f"f{n}"], domain="local") for n in ("x", "z")]
    nodes.append(helper.make_node("Add", ["fx", "fz"], ["y"]))
    outer, inner = weight.shape
    graph = helper.make_graph(
        nodes, "g", [_value("x", inner), _value("z", inner)], [_value("y", outer)]
    )
    opsets = [opset, helper.make_opsetid("local", 1)]
    model = helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("shape", [(32, 16), (256, 128)], ids=["small", "large"])
def test_a_weight_of_two_calls_is_one_weight_when_it_is_cast(
    tmp_path: Path, rng: np.random.Generator, shape: tuple[int, int]
) -> None:
    weight = random_weight(rng, *shape)
    path = _two_calls(tmp_path / "m.onnx", weight)
    mask = band_mask(rng, "w", weight)
    compiled = compile_model(path, masks_of(mask), CompileRecipe(dtype="fp16"))
    target = compiled.save(tmp_path / "out")
    feeds = {n: rng.uniform(-1, 1, (3, shape[1])).astype(np.float32) for n in ("x", "z")}
    found = run_ort(target, feeds, optimise=False)["y"]
    wanted = masked_product(feeds["x"] + feeds["z"], weight, mask.keep())
    # float16 rounds x, W and the sums.
    assert np.linalg.norm(found - wanted) < 4e-3 * np.linalg.norm(wanted)
