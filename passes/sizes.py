"""Sizes of axes that a graph computes, as products of numbers and of named unknowns.

A Reshape or Expand takes its shape from small integer tensors that the graph puts together out
of Shape, Slice and Concat. This is the little of their arithmetic that exporters use, by hand:
onnx's shape inference gives up at the first unknown size, and says of a size which it is, but
not where in the graph it can be read.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import onnx_ir as ir

from patch_compile.passes.sites import constant_tensor

__all__ = ["ONE", "Entry", "Size", "constant_ints", "declared", "entries", "product_of"]

Dims = tuple["Size", ...]
Known = Mapping[ir.Value, Dims]

# Nodes between a shape operand and what it is made of.
_DEEPEST = 12


@dataclass(frozen=True)
class Size:
    """`number` times the sizes of `names`, which are sorted and may repeat."""

    number: int
    names: tuple[str, ...] = ()

    @classmethod
    def unknown(cls, value: ir.Value, place: int) -> "Size":
        """A size that nothing else has."""
        return cls(1, (f"?{value.name}.{place}",))

    @property
    def fixed(self) -> int | None:
        """The number, if there is nothing else."""
        return None if self.names else self.number

    def __mul__(self, other: "Size") -> "Size":
        return Size(self.number * other.number, tuple(sorted(self.names + other.names)))

    def over(self, other: "Size") -> "Size | None":
        """The size that times `other` is this one; None if no size is known to be."""
        rest = Counter(self.names)
        rest.subtract(other.names)
        if other.number == 0 or self.number % other.number or min([0, *rest.values()]) < 0:
            return None
        return Size(self.number // other.number, tuple(sorted(rest.elements())))


ONE = Size(1)


@dataclass(frozen=True)
class Entry:
    """One entry of a shape.

    Attributes:
        size: -1 and 0 mean what Reshape takes them for; None if nothing is known.
        source: a value of one element, on one axis, that holds it at run time; None if there
            is none, or if it follows from a value that `Known` tells of.
    """

    size: Size | None
    source: ir.Value | None = None


Entries = tuple[Entry, ...]


def product_of(sizes: Sequence[Size]) -> Size:
    """The product of all."""
    names = tuple(sorted(name for size in sizes for name in size.names))
    return Size(prod(size.number for size in sizes), names)


def declared(value: ir.Value) -> Dims | None:
    """The sizes that a graph states for a value's axes; None if it states no rank."""
    tensor = constant_tensor(value)
    shape = value.shape if tensor is None else tensor.shape
    if shape is None:
        return None
    return tuple(_dim(value, place, dim) for place, dim in enumerate(shape))


def _dim(value: ir.Value, place: int, dim: int | ir.SymbolicDimProtocol) -> Size:
    if isinstance(dim, int):
        return Size(dim)
    return Size.unknown(value, place) if dim.value is None else Size(1, (str(dim.value),))


def constant_ints(value: ir.Value | None) -> tuple[int, ...] | None:
    """The integers of a constant, flat; None if it is computed."""
    tensor = None if value is None else constant_tensor(value)
    if tensor is None or not tensor.dtype.is_integer():
        return None
    return tuple(int(number) for number in tensor.numpy().reshape(-1))


def entries(value: ir.Value, known: Known, depth: int = 0) -> Entries | None:
    """What a tensor of sizes holds; None if not even their number is known.

    Args:
        value: integers on one axis, or a single one.
        known: sizes of values that the graph may say less of; nothing that is read off these
            has a source, since they will be made anew.
        depth: of the recursion.
    """
    ints = constant_ints(value)
    if ints is not None:
        return tuple(Entry(Size(number)) for number in ints)
    node = value.producer()
    rule = (
        None if node is None or node.domain or depth > _DEEPEST else _RULES.get(node.op_type)
    )
    found = None if rule is None or node is None else rule(node, known, depth + 1)
    if found is None:
        return _stated(value)
    # A part that is handed on whole can be read off any value on the way; the last is nearest.
    if len(found) == 1 and value.shape is not None and value.shape.rank() == 1:
        (entry,) = found
        hidden = node is not None and _follows(value, known, 0)
        return (Entry(entry.size, None if hidden else value),)
    return found


def _stated(value: ir.Value) -> Entries | None:
    dims = declared(value)
    count = None if dims is None else product_of(dims).fixed
    if dims is None or count is None or len(dims) > 1:
        return None
    alone = count == 1 and len(dims) == 1
    return tuple(
        Entry(Size.unknown(value, place), value if alone else None) for place in range(count)
    )


def _follows(value: ir.Value, known: Known, depth: int) -> bool:
    """Whether a size is read off a value of `known`."""
    node = value.producer()
    if value in known:
        return True
    if node is None or depth > _DEEPEST:
        return False
    return any(_follows(v, known, depth + 1) for v in node.inputs if v is not None)


def _shape(node: ir.Node, known: Known, _: int) -> Entries | None:
    value = node.inputs[0]
    if value is None:
        return None
    dims = known.get(value) or declared(value)
    start, end = (node.attributes.get(name) for name in ("start", "end"))
    if dims is None:
        return None
    part = dims[
        None if start is None else start.as_int() : None if end is None else end.as_int()
    ]
    return tuple(Entry(size) for size in part)


def _concat(node: ir.Node, known: Known, depth: int) -> Entries | None:
    parts = [None if v is None else entries(v, known, depth) for v in node.inputs]
    if any(part is None for part in parts):
        return None
    return tuple(entry for part in parts if part is not None for entry in part)


def _slice(node: ir.Node, known: Known, depth: int) -> Entries | None:
    data = _first(node, known, depth)
    bounds = [constant_ints(value) for value in node.inputs[1:]]
    known_bounds = [bound[0] for bound in bounds if bound is not None and len(bound) == 1]
    if data is None or len(known_bounds) != len(bounds) or known_bounds[3:] not in ([], [1]):
        return None
    return data[known_bounds[0] : known_bounds[1]]


def _gather(node: ir.Node, known: Known, depth: int) -> Entries | None:
    data, places = _first(node, known, depth), constant_ints(node.inputs[1])
    if data is None or places is None or any(not -len(data) <= p < len(data) for p in places):
        return None
    return tuple(Entry(data[place].size) for place in places)


def _first(node: ir.Node, known: Known, depth: int) -> Entries | None:
    """What does not change the integers: their axes, or their type."""
    value = node.inputs[0]
    return None if value is None else entries(value, known, depth)


def _mul(node: ir.Node, known: Known, depth: int) -> Entries | None:
    one, two = (None if v is None else entries(v, known, depth) for v in node.inputs)
    if one is None or two is None or len(one) != 1 or len(two) != 1:
        return None
    a, b = one[0].size, two[0].size
    return (Entry(None if a is None or b is None else a * b),)


_RULES: Mapping[str, Callable[[ir.Node, Known, int], Entries | None]] = {
    "Shape": _shape,
    "Concat": _concat,
    "Slice": _slice,
    "Gather": _gather,
    "Mul": _mul,
    **dict.fromkeys(("Identity", "Cast", "Squeeze", "Unsqueeze", "Reshape"), _first),
}
