"""An attention once more, for some of its groups of heads."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from patch_compile.errors import InternalError
from patch_compile.passes.layouts import Fixed, Layout, PerGroup, Written
from patch_compile.passes.lowering import Emitter
from patch_compile.passes.sites import constant_tensor
from patch_compile.passes.sizes import Entry, Size
from patch_compile.passes.steps import Step

__all__ = ["HeadsCopy"]


@dataclass(frozen=True)
class HeadsCopy:
    """The steps of an attention, written for one branch.

    Attributes:
        emit: writes nodes.
        groups: that this copy has, in their own order.
        label: goes into every name.
        made: the copy's values by the attention's own.
        shapes: the shapes that were written so far.
    """

    emit: Emitter
    groups: Sequence[int]
    label: str
    made: dict[ir.Value, ir.Value]
    shapes: dict[tuple[Any, ...], ir.Value] = field(default_factory=dict)

    def add(self, step: Step) -> None:
        """Writes one step whose operands are there."""
        if step.order is not None:
            self._turn(step)
        elif step.shape is not None:
            source = self.made[step.reads[0]]
            self._write(step, [source, self._shape(step.shape)], step.node.op_type)
        elif step.sizes is not None:
            self._split(step)
        else:
            operands = [self._operand(step, place) for place in range(len(step.node.inputs))]
            attributes = dict(step.node.attributes)
            for name, count in step.counts.items():
                attributes[name] = ir.AttrInt64(name, count * len(self.groups))
            self._write(step, operands, step.node.op_type, **attributes)

    def _turn(self, step: Step) -> None:
        assert step.order is not None
        source = self.made[step.reads[0]]
        if list(step.order) == sorted(step.order):
            self.made[step.node.outputs[0]] = source
            return
        self._write(step, [source], "Transpose", perm=list(step.order))

    def _split(self, step: Step) -> None:
        assert step.sizes is not None
        sizes = [size * len(self.groups) for size in step.sizes]
        axis = step.layouts[0].axis
        source = self.made[step.reads[0]]
        if self.emit.jobs.opset < 13:
            self._write(step, [source], "Split", axis=axis, split=sizes)
        else:
            self._write(step, [source, self._integers(sizes)], "Split", axis=axis)

    def _write(
        self, step: Step, inputs: Sequence[ir.Value | None], kind: str, **attributes: Any
    ) -> None:
        jobs, node = self.emit.jobs, step.node
        outputs = node.outputs[: len(step.layouts)]
        name = node.name or outputs[0].name
        made = self.emit.op.op(
            kind,
            *inputs,
            _domain=node.domain,
            _version=node.version,
            _outputs=[jobs.fresh(f"{value.name}/patch/{self.label}") for value in outputs],
            _name=jobs.fresh_node(f"{name}/patch/{self.label}"),
            **attributes,
        )
        new = [made] if isinstance(made, ir.Value) else list(made)
        for old, value, layout in zip(outputs, new, step.layouts, strict=True):
            # A value whose type the graph leaves open can state no shape either.
            if old.type is not None:
                value.type, value.shape = old.type, self._dims(layout)
            self.made[old] = value

    def _dims(self, layout: Layout) -> ir.Shape:
        return ir.Shape([_dim(size) for size in layout.within(len(self.groups))])

    def _operand(self, step: Step, place: int) -> ir.Value | None:
        value = step.node.inputs[place]
        if value is None or place not in step.cuts:
            return value if value is None else self.made.get(value, value)
        return self._constant(value, step.cuts[place])

    def _constant(self, value: ir.Value, layout: Layout) -> ir.Value:
        """The parts of a constant that belong to this copy's groups."""
        tensor = constant_tensor(value)
        if tensor is None or layout.inner.fixed is None:
            raise InternalError(f"constant '{value.name}' | has no parts for its groups")
        places = np.arange(tensor.shape.numpy()[layout.axis])
        chosen = np.isin(places // layout.inner.fixed % layout.groups, self.groups)
        part = np.compress(chosen, tensor.numpy(), axis=layout.axis)
        name = self.emit.jobs.fresh(f"{self.emit.y.name}/patch/{self.label}/{value.name}")
        made: ir.Value = self.emit.op.initializer(
            ir.Tensor(np.ascontiguousarray(part), dtype=tensor.dtype, name=name)
        )
        return made

    def _shape(self, shape: Written) -> ir.Value:
        if shape in self.shapes:
            return self.shapes[shape]
        parts = [entry.source if isinstance(entry, Entry) else entry for entry in shape]
        if any(isinstance(part, ir.Value) for part in parts):
            made = self._joined(parts)
        else:
            made = self._integers([self._number(part) for part in parts])
        self.shapes[shape] = made
        return made

    def _joined(self, parts: Sequence[Fixed | PerGroup | ir.Value | None]) -> ir.Value:
        """A shape some of whose sizes the graph reads at run time."""
        values = [
            part if isinstance(part, ir.Value) else self._integers([self._number(part)])
            for part in parts
        ]
        jobs = self.emit.jobs
        name = jobs.fresh(f"{self.emit.y.name}/patch/{self.label}/sizes")
        made: ir.Value = self.emit.op.op(
            "Concat", *values, axis=0, _outputs=[name], _name=jobs.fresh_node(name)
        )
        made.type, made.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([len(parts)])
        return made

    def _number(self, part: Fixed | PerGroup | ir.Value | None) -> int:
        assert isinstance(part, Fixed | PerGroup)
        return part.number * (len(self.groups) if isinstance(part, PerGroup) else 1)

    def _integers(self, numbers: Sequence[int]) -> ir.Value:
        key = ("integers", *numbers)
        if key not in self.shapes:
            name = self.emit.jobs.fresh(f"{self.emit.y.name}/patch/{self.label}/shape")
            array = np.asarray(numbers, np.int64)
            self.shapes[key] = self.emit.op.initializer(ir.tensor(array, name=name))
        return self.shapes[key]


def _dim(size: Size) -> int | str | None:
    """A size as a graph states it; a product of several is nothing that it could state."""
    if size.fixed is not None:
        return size.fixed
    known = size.number == 1 and len(size.names) == 1 and not size.names[0].startswith("?")
    return size.names[0] if known else None
