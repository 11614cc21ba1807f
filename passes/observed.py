"""A model that also tells how large the elements of its tokens are.

Of a value (..., features), in float32: `peak = ReduceMax(Abs(value), axis=-1)` and
`power = ReduceMean(value * value, axis=-1)`, both (...). Nothing else changes; the outputs of
the model stay, bit for bit.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

__all__ = ["Observed", "observe"]

# ReduceMax and ReduceMean take their axes as an input from here on.
_AXES_INPUT = 18
_AXES = "patch_compile.last_axis"


@dataclass(frozen=True)
class Observed:
    """The outputs that tell of one value: largest magnitudes and mean squares."""

    peak: str
    power: str


def observe(model: ir.Model, values: Sequence[ir.Value]) -> dict[str, Observed]:
    """Adds two outputs for each value, in place.

    Args:
        model: with the values in its main graph.
        values: floats (..., features).

    Returns:
        The names of the outputs by the values' names.
    """
    axes = _axes(model)
    found = {}
    for value in values:
        start = f"{value.name} patch_compile"
        names = Observed(f"{start}.peak", f"{start}.power")
        for node in _nodes(value, names, axes):
            model.graph.append(node)
            if node.op_type.startswith("Reduce"):
                # Shapes are not declared: those of the value need not be known.
                node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
                model.graph.outputs.append(node.outputs[0])
        found[value.name or ""] = names
    return found


def _axes(model: ir.Model) -> ir.Value | None:
    """The initializer of the last axis; None where axes are attributes."""
    if (model.opset_imports.get("") or 0) < _AXES_INPUT:
        return None
    tensor = ir.tensor(np.array([-1], np.int64), name=_AXES)
    value = ir.Value(name=_AXES, const_value=tensor)
    model.graph.register_initializer(value)
    return value


def _nodes(value: ir.Value, names: Observed, axes: ir.Value | None) -> Iterator[ir.Node]:
    # Squares of half floats overflow.
    cast = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT)}, name=f"{names.peak} Cast")
    x = cast.outputs[0]
    size = ir.node("Abs", [x], name=f"{names.peak} Abs")
    square = ir.node("Mul", [x, x], name=f"{names.power} Mul")
    yield from (cast, size, square)
    for op, made, name in (
        ("ReduceMax", size, names.peak),
        ("ReduceMean", square, names.power),
    ):
        last = {"axes": [-1]} if axes is None else {}
        inputs = [made.outputs[0], *([] if axes is None else [axes])]
        node = ir.node(op, inputs, {"keepdims": 0, **last}, name=name)
        node.outputs[0].name = name
        yield node
