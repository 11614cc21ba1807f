"""Which values of a graph are the same at every run."""

import onnx_ir as ir

from patch_compile.passes.sites import constant_tensor

__all__ = ["fixed_tensor"]


def fixed_tensor(value: ir.Value) -> ir.TensorProtocol | None:
    """The tensor of an initializer or a Constant, unless a caller may give another."""
    return None if value.is_graph_input() else constant_tensor(value)
