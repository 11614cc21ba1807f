"""What lies in branches, loops and functions is read with the same suspicion as the rest."""

from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from patch_compile.errors import ModelError
from patch_compile.io.onnx_model import load_model
from tests.support import said

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
