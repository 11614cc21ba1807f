"""Chains of Reshape and Transpose that come to one Transpose.

Exporters turn the last two axes of keys by a Reshape to three axes, a Transpose, and a Reshape
back, with the sizes worked out at run time. What such a chain does is seen from which axes of
its start lie in each axis of its end, and a branch writes that.
"""

from collections.abc import Sequence
from dataclasses import replace

import onnx_ir as ir

from patch_compile.passes.sizes import ONE, Size
from patch_compile.passes.steps import Moved, Step, Trace

__all__ = ["note_move"]


def note_move(step: Step, trace: Trace) -> Step:
    """Follows a chain through one more move; at its end the step becomes a Transpose.

    A Transpose amid a chain has no refusal, but its operand may: it goes on with that one.
    """
    if step.node.op_type not in ("Reshape", "Transpose") or step.node.domain:
        return step
    start, axes = _moved(step.reads[0], trace)
    flat = [axis for group in axes for axis in group]
    after = (
        _turned(axes, step)
        if step.node.op_type == "Transpose"
        else _grouped(flat, trace.layouts[start].dims, step)
    )
    amid = step.reads[0] in trace.moved
    alone = after is not None and all(len(group) == 1 for group in after)
    # What can be written as it is starts a chain of its own: the nearest start is the best.
    if after is None or not (alone or amid or step.refusal):
        return step
    trace.moved[step.node.outputs[0]] = (start, after)
    if start is step.reads[0] or not alone:
        return step
    order = tuple(group[0] for group in after)
    return replace(step, reads=(start,), order=order, shape=None, refusal=None)


def _moved(value: ir.Value, trace: Trace) -> Moved:
    each = tuple((axis,) for axis in range(len(trace.layouts[value].dims)))
    return trace.moved.get(value, (value, each))


def _turned(axes: Sequence[tuple[int, ...]], step: Step) -> tuple[tuple[int, ...], ...]:
    attribute = step.node.attributes.get("perm")
    order = range(len(axes))[::-1] if attribute is None else attribute.as_ints()
    return tuple(axes[axis] for axis in order)


def _grouped(
    axes: Sequence[int], sizes: Sequence[Size], step: Step
) -> tuple[tuple[int, ...], ...] | None:
    """Which axes of the start make up each axis of a Reshape's result; None if they do not."""
    left = list(axes)
    found = []
    for size in step.layouts[0].dims:
        group: list[int] = []
        made = ONE
        while made != size and left and size.over(made * sizes[left[0]]) is not None:
            made *= sizes[left[0]]
            group.append(left.pop(0))
        if made != size:
            return None
        found.append(tuple(group))
    return None if left else tuple(found)
