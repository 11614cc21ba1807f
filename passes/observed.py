"""A model that also tells how large the elements of its tokens are.

`peak = ReduceMax(Abs(value), axis=-1)`: of a value (..., features) an output (...). Nothing
else changes; the outputs of the model stay, bit for bit.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

__all__ = ["observe"]

# ReduceMax takes its axes as an input from here on.
_AXES_INPUT = 18


def observe(model: ir.Model, values: Sequence[ir.Value]) -> Mapping[str, str]:
    """Adds one output for each value, in place.

    Args:
        model: with the values in its main graph.
        values: floats (..., features).

    Returns:
        The outputs' names by the values' names.
    """
    graph = model.graph
    axes = ir.Value(name="patch_compile.last_axis")
    if (model.opset_imports.get("") or 0) >= _AXES_INPUT:
        axes.const_value = ir.tensor(np.array([-1], np.int64), name=axes.name)
        graph.register_initializer(axes)
    found = {}
    for value in values:
        name = f"{value.name} patch_compile.peak"
        size = ir.node("Abs", [value], name=f"{name} Abs")
        peak = _reduced(size.outputs[0], axes, name)
        graph.extend([size, peak])
        peak.outputs[0].name = name
        # Shapes are not declared: those of the value need not be known.
        peak.outputs[0].type = value.type
        graph.outputs.append(peak.outputs[0])
        found[value.name or ""] = name
    return found


def _reduced(value: ir.Value, axes: ir.Value, name: str) -> ir.Node:
    if axes.const_value is None:
        return ir.node("ReduceMax", [value], {"axes": [-1], "keepdims": 0}, name=name)
    return ir.node("ReduceMax", [value, axes], {"keepdims": 0}, name=name)
