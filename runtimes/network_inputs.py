"""The inputs of an ONNX file, without a parser of its own."""

from pathlib import Path

import onnx_ir as ir

from patch_compile.errors import ModelError
from patch_compile.io.onnx_model import load_model
from patch_compile.runtimes.profiles import NetworkInput

__all__ = ["network_inputs"]


def network_inputs(model: Path | ir.Model) -> list[NetworkInput]:
    """Returns the inputs in graph order, initializers left out.

    Args:
        model: an .onnx file, or a model in memory.

    Raises:
        ModelError: if the file cannot be read, or an input has no rank.
    """
    graph = (model if isinstance(model, ir.Model) else load_model(model)).graph
    return [
        _network_input(value) for value in graph.inputs if value.name not in graph.initializers
    ]


def _network_input(value: ir.Value) -> NetworkInput:
    if value.shape is None:
        raise ModelError(
            f"input '{value.name}' | has no shape; engines need its number of axes; export "
            "the model with shapes"
        )
    dims = [axis if isinstance(axis, int) else -1 for axis in value.shape]
    names = [None if isinstance(axis, int) else axis.value for axis in value.shape]
    return NetworkInput(value.name or "", tuple(dims), tuple(names))
