"""Makes BFLOAT16 of a graph that was cast to FLOAT16: converters know no other small type."""

from collections.abc import Iterator

import onnx
import onnx_ir as ir
from onnx import TensorProto, numpy_helper

from patch_compile.errors import ModelError

__all__ = ["check_float32", "name_bfloat16"]


def check_float32(model: ir.Model) -> None:
    """Refuses what is FLOAT16 already: it could not be told from what a converter makes so.

    Raises:
        ModelError: with the first such value.
    """
    for name in _halves(model):
        raise ModelError(
            f"dtype | is bf16, but '{name}' is FLOAT16; expected FLOAT alone; choose --dtype "
            "fp16, or export the model as fp32"
        )


def _halves(model: ir.Model) -> Iterator[str]:
    """Names of the inputs, and of the nodes that make such values."""
    for value in model.graph.inputs:
        if value.dtype == ir.DataType.FLOAT16:
            yield value.name or "?"
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        made = any(value.dtype == ir.DataType.FLOAT16 for value in node.outputs)
        if made or any(_names_half(attribute) for attribute in node.attributes.values()):
            yield node.outputs[0].name or node.name or "?"


def _names_half(attribute: ir.Attr) -> bool:
    if attribute.type == ir.AttributeType.TENSOR:
        return attribute.as_tensor().dtype == ir.DataType.FLOAT16
    named = attribute.name in ("to", "dtype", "output_dtype")
    return named and bool(attribute.value == ir.DataType.FLOAT16)


def name_bfloat16(proto: onnx.ModelProto) -> None:
    """Makes every FLOAT16 of a converted graph BFLOAT16; small tensors are restored later."""
    graphs = [proto.graph]
    while graphs:
        graph = graphs.pop()
        for value in (*graph.input, *graph.output, *graph.value_info):
            if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
                value.type.tensor_type.elem_type = TensorProto.BFLOAT16
        for tensor in graph.initializer:
            _rename_tensor(tensor)
        for node in graph.node:
            for attribute in node.attribute:
                _rename_attribute(attribute)
                graphs += [attribute.g] if attribute.HasField("g") else list(attribute.graphs)


def _rename_attribute(attribute: onnx.AttributeProto) -> None:
    if attribute.name in ("to", "dtype") and attribute.i == TensorProto.FLOAT16:
        attribute.i = TensorProto.BFLOAT16
    if attribute.HasField("t"):
        _rename_tensor(attribute.t)


def _rename_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_type != TensorProto.FLOAT16:
        return
    values = numpy_helper.to_array(tensor).astype(ir.DataType.BFLOAT16.numpy())
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
