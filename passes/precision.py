"""Casts a float32 graph to float16 or bfloat16, for networks whose types are the graph's own.

ONNX Runtime's converter places the casts. It holds weights in memory and knows float16 alone,
so large weights are hidden from it as graph inputs and come back as lazy casts, and for
bfloat16 its types are renamed afterwards.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import defs
from onnx_ir.passes.common import (
    LiftConstantsToInitializersPass,
    LiftSubgraphInitializersToMainGraphPass,
    NameFixPass,
    RemoveUnusedNodesPass,
)

from patch_compile._require import require
from patch_compile.errors import ModelError
from patch_compile.io.cast_tensor import CastTensor
from patch_compile.io.onnx_model import external_attributes
from patch_compile.passes.bfloat16 import check_float32, name_bfloat16
from patch_compile.passes.legal import Interface, same_interface
from patch_compile.recipe import CastType

__all__ = ["KEPT", "TYPES", "cast_model"]

TYPES: dict[CastType, ir.DataType] = {
    "fp16": ir.DataType.FLOAT16,
    "bf16": ir.DataType.BFLOAT16,
}

# Sums of many terms, and functions that amplify rounding, stay float32, as transformers keeps
# softmax and norms (`LlamaRMSNorm` and `eager_attention_forward` upcast), and as NVIDIA
# advises for strongly typed networks.
KEPT = frozenset(
    {
        *("Softmax", "LogSoftmax", "Exp", "Log", "Pow", "Sqrt", "Reciprocal"),
        *("ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL2", "ReduceLogSumExp"),
        *("LayerNormalization", "RMSNormalization", "GroupNormalization"),
        *("InstanceNormalization", "SimplifiedLayerNormalization"),
        *("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"),
        *("Sin", "Cos"),
    }
)
# Angles of rotary embeddings grow with the position: float16 has no integers beyond 2048.
_ANGLES = ("Sin", "Cos")
# Larger weights are cast as they are written.
_LARGE = 2**16


def cast_model(model: ir.Model, dtype: CastType) -> ir.Model:
    """Returns the model with its floats cast; inputs and outputs keep their types.

    Args:
        model: float32; Constant nodes become initializers, functions must be inlined.
        dtype: of weights and of what lies between them.

    Raises:
        ModelError: if the model has no float32 weights, or some floats of another type.
        RuntimeUnavailable: if onnxruntime, whose converter this is, is missing.
    """
    converter = require("onnxruntime.transformers.float16", "cpu")
    before = Interface.of(model)
    _lift_weights(model)
    _check_types(model, dtype)
    _check_made(model, dtype)
    if dtype == "bf16":
        check_float32(model)
    # The converter knows nodes by their names.
    NameFixPass()(model)
    originals = {name: value.const_value for name, value in model.graph.initializers.items()}
    outside = [v.name or "" for v in (*model.graph.inputs, *model.graph.outputs)]
    hidden = _hide_large(model)
    _load_small(model)
    low = TYPES[dtype]
    proto = converter.convert_float_to_float16(
        _described(model),
        keep_io_types=outside,
        op_block_list=[*converter.DEFAULT_OP_BLOCK_LIST, *KEPT, *_without(model, low)],
        node_block_list=_kept_nodes(model),
    )
    _check_branches(proto, dtype)
    if dtype == "bf16":
        name_bfloat16(proto)
    cast: ir.Model = ir.from_proto(proto)
    _restore(cast, originals, hidden, low)
    cast.graph.sort()
    _drop_round_trips(cast, low)
    for finding in same_interface(cast, before):
        raise ModelError(
            f"dtype | is {dtype}, but {finding}; expected inputs and outputs to keep their "
            "types; leave --dtype out"
        )
    return cast


def _lift_weights(model: ir.Model) -> None:
    """Makes Constants, and the weights of branches, initializers of the main graph."""
    # Small ones too: the converter rounds them whoever reads them, but for `value_float`.
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    LiftSubgraphInitializersToMainGraphPass()(model)


def _described(model: ir.Model) -> onnx.ModelProto:
    """The graph as the converter reads it: it would cast what is told of weights twice."""
    proto: onnx.ModelProto = ir.to_proto(model)
    told = [v for v in proto.graph.value_info if v.name not in model.graph.initializers]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(told)
    return proto


def _check_types(model: ir.Model, dtype: CastType) -> None:
    kinds = {
        value.const_value.dtype
        for value in model.graph.initializers.values()
        if value.const_value is not None and value.const_value.dtype.is_floating_point()
    }
    others = sorted(kind.name for kind in kinds - {ir.DataType.FLOAT, ir.DataType.DOUBLE})
    if others or ir.DataType.FLOAT not in kinds:
        raise ModelError(
            f"dtype | is {dtype}, but the model's weights are "
            f"{', '.join(others) or 'no floats'}; expected FLOAT alone; export it as fp32, or "
            "leave --dtype out"
        )


def _check_made(model: ir.Model, dtype: CastType) -> None:
    """The converter casts an output in a node of its name, which would make a weight anew."""
    for value in model.graph.outputs:
        if value.producer() is None and value.dtype == ir.DataType.FLOAT:
            raise ModelError(
                f"dtype | is {dtype}, but output '{value.name}' is a weight or an input; "
                "expected outputs that nodes make; export it without, or leave --dtype out"
            )


def _hide_large(model: ir.Model) -> list[str]:
    """Turns large float32 initializers into inputs; returns their names."""
    names = [
        name
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
        and value.const_value.dtype == ir.DataType.FLOAT
        and value.const_value.nbytes >= _LARGE
        and not value.is_graph_input()
    ]
    for name in names:
        value = model.graph.initializers.pop(name)
        tensor = value.const_value
        assert tensor is not None
        value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
        model.graph.inputs.append(value)
    return names


def _load_small(model: ir.Model) -> None:
    """Takes what is left of the weights into memory, where the converter reads them."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = _loaded(value.const_value, value.name)
    for node, attribute in external_attributes(model):
        loaded = _loaded(attribute.as_tensor(), attribute.as_tensor().name)
        node.attributes[attribute.name] = ir.AttrTensor(attribute.name, loaded)


def _loaded(tensor: ir.TensorProtocol, name: str | None) -> ir.TensorProtocol:
    return ir.Tensor(tensor.numpy().copy(), name=name, dtype=tensor.dtype)


def _without(model: ir.Model, low: ir.DataType) -> set[str]:
    """Operators that take float32 but, at the model's opset, not the smaller type."""
    kind = f"tensor({low.name.lower()})"
    found = set()
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        version = model.opset_imports.get(node.domain)
        if version is None or not defs.has(node.op_type, version, node.domain):
            continue
        schema = defs.get_schema(node.op_type, version, node.domain)
        allowed = [set(limit.allowed_type_strs) for limit in schema.type_constraints]
        if any("tensor(float)" in types and kind not in types for types in allowed):
            found.add(node.op_type)
    return found


def _kept_nodes(model: ir.Model) -> list[str]:
    """Names of the nodes that stay float32 for where they stand, not for what they are.

    What Sin and Cos are computed from, and what lies between two nodes that stay: the square
    of a norm overflows float16 where the norm itself does not.
    """
    kept = {node for node in model.graph if node.op_type in KEPT}
    waiting = [node for node in kept if node.op_type in _ANGLES]
    while waiting:
        before = set(_producers(waiting.pop())) - kept
        kept |= before
        waiting += before
    for node in model.graph:
        makers, takers = set(_producers(node)), set(_consumers(node))
        if makers and takers and makers | takers <= kept:
            kept.add(node)
    return sorted(node.name for node in kept if node.name)


def _producers(node: ir.Node) -> Iterator[ir.Node]:
    for value in node.inputs:
        producer = None if value is None else value.producer()
        if producer is not None and value is not None and value.dtype == ir.DataType.FLOAT:
            yield producer


def _consumers(node: ir.Node) -> Iterator[ir.Node]:
    for value in node.outputs:
        if value.is_graph_output():
            # The caller is no node that stays.
            yield node
        yield from value.consumers()


def _drop_round_trips(model: ir.Model, low: ir.DataType) -> None:
    """`Cast(Cast(x, low), FLOAT)` -> `x` for x in float32: nothing is rounded for nothing."""
    for node in model.graph:
        inner = _cast_to(node, ir.DataType.FLOAT)
        outer = None if inner is None else _cast_to(inner.producer(), low)
        if outer is not None and outer.dtype == ir.DataType.FLOAT:
            node.outputs[0].replace_all_uses_with(outer)
    RemoveUnusedNodesPass()(model)


def _cast_to(node: ir.Node | None, dtype: ir.DataType) -> ir.Value | None:
    """What a node casts to `dtype`; None if it does not, or makes an output of the graph."""
    if node is None or node.op_type != "Cast" or node.outputs[0].is_graph_output():
        return None
    return node.inputs[0] if node.attributes["to"].as_int() == dtype else None


def _check_branches(proto: onnx.ModelProto, dtype: CastType) -> None:
    """The converter puts its casts into the main graph, even those of what a branch makes."""
    graph = proto.graph
    known = {value.name for value in (*graph.input, *graph.initializer)}
    known |= {name for node in graph.node for name in node.output} | {""}
    for name in (name for node in graph.node for name in node.input):
        if name not in known:
            raise ModelError(
                f"dtype | is {dtype}, but '{name}', in a branch or loop body, meets an "
                "operator that stays float32; expected these outside; leave --dtype out"
            )


def _restore(
    model: ir.Model, originals: dict[str, Any], hidden: list[str], low: ir.DataType
) -> None:
    """Gives hidden weights back, and small ones the values of one rounding, not of two."""
    casts = _casts(originals, low)
    inputs = {value.name: value for value in model.graph.inputs}
    for name in hidden:
        value = inputs[name]
        value.const_value = casts[name]
        model.graph.inputs.remove(value)
        model.graph.initializers.add(value)
    for name, value in model.graph.initializers.items():
        stored, original = value.const_value, originals.get(name)
        if stored is None or original is None:
            continue
        if stored.dtype == original.dtype:
            value.const_value = original
        elif stored.dtype == low and name in casts:
            value.const_value = casts[name]


def _casts(originals: dict[str, Any], low: ir.DataType) -> dict[str, ir.TensorProtocol]:
    """Casts by name; what two calls of a function share is one weight still."""
    floats = {
        name: tensor
        for name, tensor in originals.items()
        if tensor is not None and tensor.dtype == ir.DataType.FLOAT
    }
    made = {id(tensor): tensor for tensor in floats.values()}
    cast = {key: _cast_of(tensor, low) for key, tensor in made.items()}
    return {name: cast[id(tensor)] for name, tensor in floats.items()}


def _cast_of(tensor: ir.TensorProtocol, low: ir.DataType) -> ir.TensorProtocol:
    if tensor.nbytes >= _LARGE:
        return CastTensor(tensor, low)
    return ir.tensor(_rounded(tensor.numpy(), low), name=tensor.name)


def _rounded(values: NDArray[Any], low: ir.DataType) -> NDArray[Any]:
    """Rounds to the nearest; finite values stay finite, as fills of attention masks must."""
    most = float(np.finfo(np.float16).max) if low == ir.DataType.FLOAT16 else None
    finite = np.isfinite(values)
    clipped = (
        values if most is None else np.where(finite, np.clip(values, -most, most), values)
    )
    with np.errstate(over="ignore"):
        return np.asarray(clipped.astype(low.numpy()))
