"""What a branch of an attention does instead of each node, as data.

G: groups, see `layouts`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from patch_compile.passes.constants import fixed_tensor
from patch_compile.passes.layouts import Layout, Mixed, Written
from patch_compile.passes.sizes import ONE, Size, constant_ints, declared

__all__ = ["Step", "Trace", "axis_of", "beside", "integer", "integers", "sole_output"]

Moved = tuple[ir.Value, tuple[tuple[int, ...], ...]]


@dataclass(frozen=True, eq=False)
class Step:
    """One node of an attention, and how it is written for some of the groups.

    Attributes:
        node: of the original graph; operands with a step of their own are the branch's, all
            others are shared.
        layouts: where the groups lie in each of its outputs.
        reads: operands that hold groups.
        cuts: constants with a part for each group, by operand.
        shape: the second operand of a Reshape or Expand, made anew.
        sizes: of a Split along the groups, its parts' features of one group.
        counts: attributes that count heads, by their number in one group.
        order: the node is written as a Transpose of `reads` in this order instead; the order
            of its axes stands for the value itself.
        refusal: why the node cannot be written, if it turns out to be needed.
    """

    node: ir.Node
    layouts: tuple[Layout, ...]
    reads: tuple[ir.Value, ...]
    cuts: Mapping[int, Layout] = field(default_factory=dict)
    shape: Written | None = None
    sizes: tuple[int, ...] | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    order: tuple[int, ...] | None = None
    refusal: str | None = None


@dataclass
class Trace:
    """What is known of the values so far.

    Attributes:
        groups: G.
        layouts: of the values that hold groups.
        moved: of values that are other values moved: which, and the axes of that one in each
            axis of this one.
    """

    groups: int
    layouts: dict[ir.Value, Layout]
    moved: dict[ir.Value, Moved] = field(default_factory=dict)

    @property
    def known(self) -> dict[ir.Value, tuple[Size, ...]]:
        """The sizes of those values."""
        return {value: layout.dims for value, layout in self.layouts.items()}

    def reads(self, node: ir.Node) -> tuple[ir.Value, ...]:
        """The operands of a node that hold groups, in order."""
        return tuple(v for v in node.inputs if v is not None and v in self.layouts)

    def only(self, node: ir.Node) -> Layout:
        """The layout of the first operand, which must be the only one that holds groups."""
        value = node.inputs[0]
        if value is None or value not in self.layouts or len(self.reads(node)) > 1:
            raise Mixed("computes its own parameters from heads")
        return self.layouts[value]

    def same(self, node: ir.Node, layout: Layout) -> Step:
        """A step that copies the node."""
        return Step(node, (layout,), self.reads(node))


def beside(value: ir.Value, layout: Layout) -> Layout | None:
    """How a value without groups broadcasts against one that has them.

    Returns:
        None if it is alike for all groups; else how its parts for the groups lie in it, which
        is told of constants alone.

    Raises:
        Mixed: if it is not alike for all groups and cannot be cut.
    """
    dims = declared(value)
    if dims is None:
        raise Mixed(f"reads '{value.name}', whose shape is unknown")
    if len(dims) < layout.from_end or dims[-layout.from_end] == ONE:
        return None
    axis = len(dims) - layout.from_end
    if fixed_tensor(value) is not None and dims[axis] == layout.dims[layout.axis]:
        return layout.at(axis, dims)
    raise Mixed(
        f"reads '{value.name}', which has a part for every head or may have one; "
        "only constants are cut"
    )


def sole_output(node: ir.Node) -> None:
    """Refuses a node whose further outputs are read.

    Raises:
        Mixed: if one is.
    """
    for value in node.outputs[1:]:
        if value.is_graph_output() or value.uses():
            raise Mixed(f"also makes '{value.name}', which is read")


def integer(node: ir.Node, name: str) -> int | None:
    """An integer attribute, if it is there."""
    attribute = node.attributes.get(name)
    return None if attribute is None else attribute.as_int()


def integers(node: ir.Node, name: str, place: int) -> tuple[int, ...] | None:
    """Integers that are an attribute up to some opset and a constant operand from then on."""
    attribute = node.attributes.get(name)
    if attribute is not None:
        return tuple(attribute.as_ints())
    return constant_ints(node.inputs[place]) if len(node.inputs) > place else None


def axis_of(axis: int | None, dims: Sequence[Size]) -> int:
    """An axis counted from 0.

    Raises:
        Mixed: if it is not given, or there is no such axis.
    """
    if axis is None or not -len(dims) <= axis < len(dims):
        raise Mixed(f"works along axis {axis} of {len(dims)}")
    return axis % len(dims)
