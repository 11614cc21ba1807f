"""Weights that no product takes as its second operand, and what reads them instead.

A mask of such a weight is left alone with this reason, where it would seem to be of another
model.
"""

from collections.abc import Collection, Iterator

import onnx_ir as ir

from patch_compile.io.onnx_model import FLOAT_BITS
from patch_compile.passes.sites import Refusal, constant_tensor, names_of

__all__ = ["find_elsewhere"]


def find_elsewhere(model: ir.Model, known: Collection[str]) -> list[Refusal]:
    """Lists the float tensors of two axes or more that are no weight of a MatMul or Gemm.

    Args:
        model: the model to search, its functions inlined.
        known: names of the weights that `find_sites` tells of.
    """
    return [
        _refusal(value)
        for value in _values(model)
        if value.name not in known and _is_matrix(constant_tensor(value))
    ]


def _values(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from graph.initializers.values()
        for node in graph:
            if node.op_type == "Constant":
                yield from node.outputs


def _is_matrix(tensor: ir.TensorProtocol | None) -> bool:
    return tensor is not None and tensor.dtype in FLOAT_BITS and len(tensor.shape) > 1


def _refusal(value: ir.Value) -> Refusal:
    readers = list(dict.fromkeys(use.node for use in value.uses()))
    names = dict.fromkeys(name for node in readers for name in names_of(node, value))
    return Refusal(
        value.name or "", tuple(names or {value.name or "": None}), _reason(readers)
    )


def _reason(readers: list[ir.Node]) -> str:
    if not readers:
        return "no node reads it"
    many = f" and {len(readers) - 1} more" if len(readers) > 1 else ""
    return (
        f"is read by {readers[0].op_type} '{readers[0].name}'{many}; a mask is applied where "
        "a MatMul or Gemm multiplies by the weight from the right"
    )
