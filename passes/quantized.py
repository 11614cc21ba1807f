"""What the products of a quantised graph look like: read off the graph, nothing is changed.

N: out features. K: in features.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from patch_compile.passes.sites import ROLE, pieces
from patch_compile.tiles.inspect import violations

__all__ = ["QuantizedPiece", "quantized_pieces"]

# Element types of one byte, and whether they have a negative zero.
_BYTES = {ir.DataType.INT8: False, ir.DataType.FLOAT8E4M3FN: True}


@dataclass(frozen=True)
class QuantizedPiece:
    """One product over a quantised weight.

    Attributes:
        name: of its node.
        role: `dense` or `sparse24`.
        holds: its stored bytes are 2:4 along K.
        quantized_output: all that takes its output quantises it first. TensorRT has sparse
            int8 products for int8 outputs alone.
    """

    name: str
    role: str
    holds: bool
    quantized_output: bool


def quantized_pieces(model: ir.Model) -> tuple[QuantizedPiece, ...]:
    """Lists the marked products whose weight comes from a DequantizeLinear over one byte."""
    return tuple(_found(model))


def _found(model: ir.Model) -> Iterator[QuantizedPiece]:
    for node in pieces(model):
        stored = _stored(node)
        if stored is None:
            continue
        bits = np.asarray(stored.numpy()).view(np.uint8)
        bad = violations(bits, axis=0, signed_zero=_BYTES[stored.dtype])
        yield QuantizedPiece(
            name=node.name or "?",
            role=node.metadata_props[ROLE],
            holds=bad == 0,
            quantized_output=_only_quantised(node.outputs[0]),
        )


def _stored(node: ir.Node) -> ir.TensorProtocol | None:
    """The bytes of a product's weight; None if it is not quantised symmetrically."""
    weight = node.inputs[1] if len(node.inputs) == 2 else None
    producer = None if weight is None else weight.producer()
    if producer is None or producer.op_type != "DequantizeLinear":
        return None
    values = [None if value is None else value.const_value for value in producer.inputs]
    stored, zero = values[0], values[2] if len(values) > 2 else None
    if stored is None or stored.dtype not in _BYTES:
        return None
    if zero is not None and np.any(np.asarray(zero.numpy()).astype(np.float32) != 0):
        return None
    return stored


def _only_quantised(value: ir.Value) -> bool:
    takers = value.consumers()
    kinds = {taker.op_type for taker in takers}
    return kinds == {"QuantizeLinear"} and not value.is_graph_output()
