"""Operations that do the same to every group of heads, each with how it is shown.

Every rule takes a node and what is known of its operands, and returns the step of a branch. An
operation without a rule mixes groups as far as anyone knows.
"""

from collections.abc import Callable, Mapping
from itertools import zip_longest

import onnx_ir as ir

from patch_compile.passes.fused_heads import FUSED_RULES
from patch_compile.passes.layouts import (
    Layout,
    Mixed,
    Written,
    expanded,
    reshaped,
    turned,
    written,
)
from patch_compile.passes.moves import note_move
from patch_compile.passes.regions import ELEMENTWISE
from patch_compile.passes.sizes import (
    ONE,
    Entry,
    Size,
    constant_ints,
    declared,
    entries,
    follows,
)
from patch_compile.passes.steps import (
    Step,
    Trace,
    axis_of,
    beside,
    integer,
    integers,
    sole_output,
)

__all__ = ["MOVES", "step_of"]

Rule = Callable[[ir.Node, Trace], Step]

# Elementwise operations that an MLP does not need: masks of scores.
_ALSO_ELEMENTWISE = "And Equal Greater GreaterOrEqual IsInf IsNaN Less LessOrEqual Not Or Xor"
_REDUCTIONS = "ReduceL2 ReduceMax ReduceMean ReduceMin ReduceSum ReduceSumSquare"
_NORMS = "LayerNormalization RMSNormalization SimplifiedLayerNormalization"

_OPERANDS = {"Attention": 3, "Expand": 2, "MatMul": 2, "Reshape": 2, "Slice": 3}
_UNREADABLE = "needs sizes that are known at run time alone"

# Operations that compute nothing.
MOVES = frozenset(
    {"Expand", "Identity", "Reshape", "Split", "Squeeze", "Transpose", "Unsqueeze"}
)


def step_of(node: ir.Node, trace: Trace) -> Step:
    """The step of a node that reads values with groups; their layouts join the trace.

    Raises:
        Mixed: if groups meet in it, or may.
    """
    rule = _RULES.get((node.domain, node.op_type))
    if rule is None:
        raise Mixed("may mix heads")
    if len(node.inputs) < _OPERANDS.get(node.op_type, 1):
        raise Mixed("lacks an operand")
    step = rule(node, trace)
    for value, layout in zip(node.outputs, step.layouts, strict=False):
        trace.layouts[value] = layout
    return note_move(step, trace)


def _elementwise(node: ir.Node, trace: Trace) -> Step:
    reads = trace.reads(node)
    first = trace.layouts[reads[0]]
    if not all(first.alike(trace.layouts[value]) for value in reads):
        raise Mixed("joins heads that lie in different orders")
    cuts: dict[int, Layout] = {}
    dims: tuple[Size, ...] = first.dims
    for place, value in enumerate(node.inputs):
        if value is None:
            continue
        if value not in trace.layouts and (cut := beside(value, first)) is not None:
            cuts[place] = cut
        known = trace.layouts[value].dims if value in trace.layouts else declared(value)
        dims = _broadcast(dims, known or (), node.outputs[0])
    after = first.at(len(dims) - first.from_end, dims)
    return Step(node, (after,), reads, cuts)


def _broadcast(
    one: tuple[Size, ...], two: tuple[Size, ...], out: ir.Value
) -> tuple[Size, ...]:
    pairs = [*zip_longest(reversed(one), reversed(two), fillvalue=ONE)]
    return tuple(
        reversed([_wider(a, b, out, -1 - place) for place, (a, b) in enumerate(pairs)])
    )


def _wider(a: Size, b: Size, out: ir.Value, place: int) -> Size:
    if a == b or b == ONE:
        return a
    if a == ONE:
        return b
    # An unknown size beside a number above 1 is that number, or 1.
    fixed = next((size for size in (a, b) if size.fixed is not None), None)
    return Size.unknown(out, place) if fixed is None else fixed


def _reduction(node: ir.Node, trace: Trace) -> Step:
    layout = trace.only(node)
    axes = integers(node, "axes", 1)
    if not axes:
        raise Mixed("reduces over all axes")
    gone = {axis_of(axis, layout.dims) for axis in axes}
    if layout.axis in gone:
        raise Mixed("reduces across heads")
    if integer(node, "keepdims") in (None, 1):
        dims = [ONE if axis in gone else size for axis, size in enumerate(layout.dims)]
        return trace.same(node, layout.at(layout.axis, dims))
    dims = [size for axis, size in enumerate(layout.dims) if axis not in gone]
    before = sum(axis < layout.axis for axis in gone)
    return trace.same(node, layout.at(layout.axis - before, dims))


def _softmax(node: ir.Node, trace: Trace) -> Step:
    layout = trace.only(node)
    given = integer(node, "axis")
    default = -1 if _opset(node) >= 13 else 1
    axis = axis_of(default if given is None else given, layout.dims)
    # Up to opset 12 all axes from this one on are one; of the last axis both mean the same.
    if axis != len(layout.dims) - 1 or axis == layout.axis:
        raise Mixed("normalises across heads")
    return trace.same(node, layout)


def _opset(node: ir.Node) -> int:
    graph = node.graph
    return 0 if graph is None else graph.opset_imports.get(node.domain, 0)


def _norm(node: ir.Node, trace: Trace) -> Step:
    layout = trace.only(node)
    sole_output(node)
    axis = integer(node, "axis")
    if layout.axis >= axis_of(-1 if axis is None else axis, layout.dims):
        raise Mixed("normalises across heads")
    cuts = {
        place: cut
        for place, value in enumerate(node.inputs[1:], 1)
        if value is not None and (cut := beside(value, layout)) is not None
    }
    return Step(node, (layout,), trace.reads(node), cuts)


def _matmul(node: ir.Node, trace: Trace) -> Step:
    reads = trace.reads(node)
    one, two = (trace.layouts.get(v) if v is not None else None for v in node.inputs)
    if one is None or two is None:
        raise Mixed("multiplies heads by what is none")
    if min(one.from_end, two.from_end) < 3:
        raise Mixed("sums over heads")
    if not one.alike(two):
        raise Mixed("multiplies heads that lie in different orders")
    lead = _broadcast(one.dims[:-2], two.dims[:-2], node.outputs[0])
    dims = (*lead, one.dims[-2], two.dims[-1])
    return Step(node, (one.at(len(dims) - one.from_end, dims),), reads)


def _transpose(node: ir.Node, trace: Trace) -> Step:
    layout = trace.only(node)
    attribute = node.attributes.get("perm")
    axes = range(len(layout.dims))
    order = [*reversed(axes)] if attribute is None else list(attribute.as_ints())
    if sorted(order) != [*axes]:
        raise Mixed(f"turns {len(order)} of {len(axes)} axes")
    return trace.same(node, turned(layout, order))


def _reshape(node: ir.Node, trace: Trace) -> Step:
    layout, target = trace.only(node), _target(node, trace)
    zero_copies = integer(node, "allowzero") in (None, 0)
    after = reshaped(layout, target, zero_copies=zero_copies)
    shape = written(layout, after, target)
    why = None if shape and _readable(shape, trace) else _UNREADABLE
    return Step(node, (after,), trace.reads(node), shape=shape, refusal=why)


def _expand(node: ir.Node, trace: Trace) -> Step:
    layout, target = trace.only(node), _target(node, trace)
    value = node.inputs[0]
    after, shape = expanded(layout, target, "" if value is None else value.name or "")
    why = None if _readable(shape, trace) else _UNREADABLE
    return Step(node, (after,), trace.reads(node), shape=shape, refusal=why)


def _readable(shape: Written, trace: Trace) -> bool:
    """Whether no size that is read at run time follows from what a branch makes anew."""
    sources = [entry.source for entry in shape if isinstance(entry, Entry)]
    return not any(source is None or follows(source, trace.known) for source in sources)


def _target(node: ir.Node, trace: Trace) -> tuple[Entry, ...]:
    operand = node.inputs[1]
    target = None if operand is None else entries(operand, trace.known)
    if target is None:
        raise Mixed("has a shape that is known at run time alone")
    return target


def _unsqueeze(node: ir.Node, trace: Trace) -> Step:
    layout, axes = trace.only(node), integers(node, "axes", 1)
    if axes is None:
        raise Mixed("adds axes that are known at run time alone")
    rank = len(layout.dims) + len(axes)
    new = {axis % rank for axis in axes}
    if len(new) < len(axes):
        raise Mixed("adds an axis twice")
    old = iter(layout.dims)
    dims = [ONE if axis in new else next(old) for axis in range(rank)]
    places = [axis for axis in range(rank) if axis not in new]
    return trace.same(node, layout.at(places[layout.axis], dims))


def _squeeze(node: ir.Node, trace: Trace) -> Step:
    layout, axes = trace.only(node), integers(node, "axes", 1)
    gone = {axis_of(axis, layout.dims) for axis in axes or ()}
    if not axes or layout.axis in gone:
        raise Mixed("takes away axes that are known at run time alone")
    dims = [size for axis, size in enumerate(layout.dims) if axis not in gone]
    return trace.same(node, layout.at(layout.axis - sum(a < layout.axis for a in gone), dims))


def _slice(node: ir.Node, trace: Trace) -> Step:
    layout = trace.only(node)
    starts, stops, *rest = (constant_ints(value) for value in node.inputs[1:])
    if starts is None or stops is None or None in rest:
        raise Mixed("cuts at places that are known at run time alone")
    axes, steps = (*rest, None, None)[:2]
    counts = {len(each) for each in (starts, stops, axes, steps) if each is not None}
    if len(counts) > 1 or 0 in (steps or ()):
        raise Mixed("cuts at places that fit no axes")
    dims = list(layout.dims)
    for place, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        axis = axis_of(place if axes is None else axes[place], dims)
        if axis == layout.axis:
            raise Mixed("cuts the axis of the heads")
        size = dims[axis].fixed
        part = slice(start, stop, 1 if steps is None else steps[place])
        dims[axis] = (
            Size.unknown(node.outputs[0], axis)
            if size is None
            else Size(len(range(size)[part]))
        )
    return trace.same(node, layout.at(layout.axis, dims))


def _split(node: ir.Node, trace: Trace) -> Step:
    layout, count = trace.only(node), len(node.outputs)
    axis = axis_of(integer(node, "axis") or 0, layout.dims)
    size = layout.dims[axis].fixed
    sizes = integers(node, "split", 1)
    if sizes is None and size is not None and size % count == 0:
        sizes = (size // count,) * count
    if sizes is None:
        raise Mixed("parts an axis at places that are known at run time alone")
    parts = [Size(part) for part in sizes]
    if axis != layout.axis:
        made = [_replaced(layout, axis, part) for part in parts]
        return Step(node, tuple(made), trace.reads(node))
    outer, inner = layout.outer.fixed, layout.inner.fixed
    uneven = len({*sizes}) > 1 or sum(sizes) != size or len(sizes) != count
    if outer is None or inner is None or outer % count or uneven:
        raise Mixed("parts the axis of the heads unequally")
    dims = [*layout.dims]
    dims[axis] = parts[0]
    one = Layout(tuple(dims), axis, layout.groups, Size(outer // count), layout.inner)
    each = outer // count * inner
    return Step(node, (one,) * count, trace.reads(node), sizes=(each,) * count)


def _replaced(layout: Layout, axis: int, size: Size) -> Layout:
    dims = [*layout.dims]
    dims[axis] = size
    return layout.at(layout.axis, dims)


def _concat(node: ir.Node, trace: Trace) -> Step:
    for value in node.inputs:
        if value is not None and value not in trace.layouts:
            raise Mixed(f"joins heads to '{value.name}', which holds those of all groups")
    layouts = [trace.layouts[value] for value in trace.reads(node)]
    first = layouts[0]
    axis = axis_of(integer(node, "axis"), first.dims)
    same_rank = {len(layout.dims) for layout in layouts} == {len(first.dims)}
    if axis == first.axis or not same_rank or not all(first.alike(each) for each in layouts):
        raise Mixed("joins heads along their own axis, or such as lie in different orders")
    sizes = [layout.dims[axis].fixed for layout in layouts]
    known = [size for size in sizes if size is not None]
    whole = Size(sum(known))
    if len(known) < len(sizes):
        whole = Size.unknown(node.outputs[0], axis)
    return trace.same(node, _replaced(first, axis, whole))


def _table(names: str, rule: Rule, domain: str = "") -> dict[tuple[str, str], Rule]:
    return {(domain, name): rule for name in names.split()}


_RULES: Mapping[tuple[str, str], Rule] = {
    **_table(f"{ELEMENTWISE['']} {_ALSO_ELEMENTWISE}", _elementwise),
    **_table(ELEMENTWISE["com.microsoft"], _elementwise, "com.microsoft"),
    **_table(_REDUCTIONS, _reduction),
    **_table(_NORMS, _norm),
    **_table("Softmax LogSoftmax", _softmax),
    **_table("MatMul", _matmul),
    **_table("Transpose", _transpose),
    **_table("Reshape", _reshape),
    **_table("Expand", _expand),
    **_table("Unsqueeze", _unsqueeze),
    **_table("Squeeze", _squeeze),
    **_table("Slice", _slice),
    **_table("Split", _split),
    **_table("Concat", _concat),
    **FUSED_RULES,
}
