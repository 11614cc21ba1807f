"""The products of a compiled model, as `joining` looks for them in an engine.

N: out features. K: in features.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from patch_compile.io.onnx_model import FLOAT_BITS, load_model, open_rows
from patch_compile.joining import PieceSite
from patch_compile.passes.sites import ROLE, WEIGHT, constant_tensor, pieces
from patch_compile.tiles.inspect import violations

__all__ = ["find_pieces"]


def find_pieces(model: Path | ir.Model) -> tuple[tuple[PieceSite, ...], int]:
    """Lists the products that compiling made, and counts the model's nodes.

    The bytes of 2:4 pieces are checked as they lie in the file: a cast or a quantizer after
    compiling may have filled zeros. Behind a DequantizeLinear the integers are checked.

    Args:
        model: a compiled .onnx file, or a model in memory.

    Returns:
        The products in graph order, and the number of nodes.

    Raises:
        ModelError: if the file cannot be read.
    """
    graph = model if isinstance(model, ir.Model) else load_model(model)
    sites = (_site(node) for node in pieces(graph))
    nodes = sum(1 for _ in ir.traversal.RecursiveGraphIterator(graph.graph))
    return tuple(site for site in sites if site is not None), nodes


def _site(node: ir.Node) -> PieceSite | None:
    tensor = _stored(node)
    if tensor is None or len(tensor.shape) != 2:
        return None
    k, n = (int(size) for size in tensor.shape.numpy())
    role = node.metadata_props[ROLE]
    return PieceSite(
        node=node.name or "",
        weight=node.metadata_props.get(WEIGHT, ""),
        role=role,
        shape=(n, k),
        dtype=tensor.dtype.name.lower(),
        eligible=role == "sparse24" and k % 4 == 0 and _two_of_four(tensor),
        lead=_lead(node),
    )


def _stored(node: ir.Node) -> ir.TensorProtocol | None:
    """The constant (K, N) that a product multiplies by, through a DequantizeLinear."""
    value = node.inputs[1] if len(node.inputs) > 1 else None
    if value is None:
        return None
    producer = value.producer()
    if producer is not None and producer.op_type == "DequantizeLinear":
        value = producer.inputs[0]
    return None if value is None else constant_tensor(value)


def _two_of_four(tensor: ir.TensorProtocol) -> bool:
    if tensor.dtype in FLOAT_BITS:
        return violations(open_rows(tensor), axis=0) == 0
    return violations(_bits(tensor), axis=0, signed_zero=_signed_zero(tensor)) == 0


def _bits(tensor: ir.TensorProtocol) -> NDArray[Any]:
    """Bytes of a type of 8 bits; wider or narrower ones as their values, zero or not."""
    array = np.asarray(tensor.numpy())
    return array.view(np.uint8) if array.itemsize == 1 else (array != 0).astype(np.uint8)


def _signed_zero(tensor: ir.TensorProtocol) -> bool:
    return tensor.dtype in (ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT8E5M2)


def _lead(node: ir.Node) -> tuple[int | str | None, ...] | None:
    x = node.inputs[0]
    if x is None or x.shape is None:
        return None
    axes = list(x.shape)[:-1]
    return tuple(axis if isinstance(axis, int) else axis.value for axis in axes)
