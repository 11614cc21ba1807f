"""What lies in branches, loops and functions is read with the same suspicion as the rest."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

from patch_compile.errors import ModelError
from patch_compile.io.onnx_model import external_files, load_model
from patch_compile.io.save_model import save_model
from tests.support import run_ort, said

FLOAT = TensorProto.FLOAT
OPSET = helper.make_opsetid("", 20)
Nodes = Sequence[onnx.NodeProto]
Nest = Callable[[onnx.GraphProto], onnx.ModelProto]


def _value(name: str, shape: Sequence[int], kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _model(nodes: Nodes, functions: Sequence[onnx.FunctionProto] = ()) -> onnx.ModelProto:
    """Of x (1, 4) and a condition c it makes y (1, 4)."""
    graph = helper.make_graph(
        nodes,
        "g",
        [_value("x", [1, 4]), _value("c", [], TensorProto.BOOL)],
        [_value("y", [1, 4])],
    )
    opsets = [OPSET, helper.make_opsetid("local", 1)]
    return helper.make_model(
        graph, opset_imports=opsets, ir_version=10, functions=list(functions)
    )


def _if(body: onnx.GraphProto) -> onnx.NodeProto:
    """Runs `body`, which makes t of x, where c holds."""
    other = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["e"])], "other", [], [_value("e", [1, 4])]
    )
    return helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=other)


def _in_branch(body: onnx.GraphProto) -> onnx.ModelProto:
    return _model([_if(body)])


def _in_branch_of_branch(body: onnx.GraphProto) -> onnx.ModelProto:
    return _model([_if(helper.make_graph([_if(body)], "outer", [], [_value("y", [1, 4])]))])


def _in_function(body: onnx.GraphProto) -> onnx.ModelProto:
    function = helper.make_function("local", "F", ["x", "c"], ["y"], [_if(body)], [OPSET])
    return _model([helper.make_node("F", ["x", "c"], ["y"], domain="local")], [function])


NESTS = [_in_branch, _in_branch_of_branch, _in_function]


@pytest.mark.parametrize("nest", NESTS)
def test_sparse_initializers_are_refused_wherever_they_lie(tmp_path: Path, nest: Nest) -> None:
    """onnx_ir drops them, and leaves a node whose input nothing makes."""
    body = helper.make_graph(
        [helper.make_node("Add", ["x", "s"], ["t"])], "body", [], [_value("t", [1, 4])]
    )
    sparse = helper.make_sparse_tensor(
        helper.make_tensor("s", FLOAT, [1], [3.0]),
        helper.make_tensor("s_at", TensorProto.INT64, [1], [2]),
        [4],
    )
    body.sparse_initializer.append(sparse)
    path = tmp_path / "model.onnx"
    path.write_bytes(nest(body).SerializeToString())
    with pytest.raises(ModelError, match="has sparse initializers; expected dense") as caught:
        load_model(path)
    said(caught)


def _weight_in(path: Path, model: onnx.ModelProto, tensor: onnx.TensorProto) -> Path:
    """Saves the model; the tensor's data lie at byte 12 of a file beside it."""
    (path.parent / "m.data").write_bytes(bytes(12) + tensor.raw_data)
    set_external_data(tensor, "m.data", 12, len(tensor.raw_data))
    tensor.ClearField("raw_data")
    path.write_bytes(model.SerializeToString())
    return path


def _constant_in_function(path: Path, weight: NDArray[Any]) -> Path:
    nodes = [
        helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(weight, "w")),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    function = helper.make_function("local", "F", ["x"], ["y"], nodes, [OPSET])
    model = _model([helper.make_node("F", ["x"], ["y"], domain="local")], [function])
    return _weight_in(path, model, model.functions[0].node[0].attribute[0].t)


def _branch_in_function(path: Path, weight: NDArray[Any]) -> Path:
    body = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["t"])],
        "body",
        [],
        [_value("t", [1, 4])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = _in_function(body)
    node = model.functions[0].node[0]
    branch = next(a.g for a in node.attribute if a.name == "then_branch")
    return _weight_in(path, model, branch.initializer[0])


PLACES = [_constant_in_function, _branch_in_function]


@pytest.mark.parametrize("place", PLACES)
def test_data_of_functions_lie_beside_the_model(
    tmp_path: Path, rng: np.random.Generator, place: Callable[[Path, NDArray[Any]], Path]
) -> None:
    """Whatever folder we run in, and what is saved has them as well."""
    weight = rng.uniform(-1, 1, (4, 4)).astype(np.float32)
    path = place(tmp_path / "model.onnx", weight)
    model = load_model(path)
    assert external_files(model) == {tmp_path / "m.data"}
    (tmp_path / "out").mkdir()
    save_model(model, tmp_path / "out" / "model.onnx")
    feeds = {"x": np.ones((1, 4), np.float32), "c": np.array(True)}
    files = (path, tmp_path / "out" / "model.onnx")
    was, now = (run_ort(file, feeds, optimise=False)["y"] for file in files)
    np.testing.assert_array_equal(now, was)


@pytest.mark.parametrize("place", PLACES)
def test_missing_data_of_functions_name_the_weight(
    tmp_path: Path, place: Callable[[Path, NDArray[Any]], Path]
) -> None:
    path = place(tmp_path / "model.onnx", np.ones((4, 4), np.float32))
    (tmp_path / "m.data").unlink()
    with pytest.raises(ModelError, match=r"'w' \| lies in 'm\.data', which cannot") as caught:
        load_model(path)
    said(caught)
