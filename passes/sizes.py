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

from patch_compile.passes.constants import fixed_tensor

__all__ = [
    "ONE",
    "Entry",
    "Size",
    "constant_ints",
    "declared",
    "entries",
    "follows",
    "product_of",
]

Dims = tuple["Size", ...]
Known = Mapping[ir.Value, Dims]

# Values between a shape operand and what it is made of, and entries of a shape, at most.
_MOST = 200
_LONGEST = 64


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
        source: a value of one element, on one axis, that holds it at run time, if any does.
    """

    size: Size | None
    source: ir.Value | None = None


Entries = tuple[Entry, ...]
Seen = dict[ir.Value, Entries | None]


def product_of(sizes: Sequence[Size]) -> Size:
    """The product of all."""
    names = tuple(sorted(name for size in sizes for name in size.names))
    return Size(prod(size.number for size in sizes), names)


def declared(value: ir.Value) -> Dims | None:
    """The sizes that a graph states for a value's axes; None if it states no rank."""
    tensor = fixed_tensor(value)
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
    tensor = None if value is None else fixed_tensor(value)
    if tensor is None or not tensor.dtype.is_integer():
        return None
    return tuple(int(number) for number in tensor.numpy().reshape(-1))


def entries(value: ir.Value, known: Known, seen: Seen | None = None) -> Entries | None:
    """What a tensor of sizes holds; None if not even their number is known.

    Args:
        value: integers on one axis, or a single one.
        known: sizes of values that the graph may say less of.
        seen: what was found so far of the values on the way.
    """
    seen = {} if seen is None else seen
    if value not in seen and len(seen) < _MOST:
        # A graph that turns in circles, or repeats itself without end, ends here.
        seen[value] = None
        seen[value] = _entries(value, known, seen)
    return seen.get(value)


def _entries(value: ir.Value, known: Known, seen: Seen) -> Entries | None:
    ints = constant_ints(value)
    if ints is not None:
        return tuple(Entry(Size(number)) for number in ints)
    node = value.producer()
    rule = None if node is None or node.domain else _RULES.get(node.op_type)
    found = None if rule is None or node is None else rule(node, known, seen)
    if found is None:
        return _stated(value)
    # A part that is handed on whole can be read off any value on the way; the last is nearest.
    if len(found) == 1 and value.shape is not None and value.shape.rank() == 1:
        return (Entry(found[0].size, value),)
    return found


def follows(value: ir.Value, known: Known) -> bool:
    """Whether a size may be read off a value of `known`, which a branch makes anew."""
    seen, stack = {value}, [value]
    while stack and len(seen) < _MOST:
        node = stack.pop().producer()
        new = [v for v in (() if node is None else node.inputs) if v is not None]
        stack += [v for v in new if v not in seen]
        seen.update(new)
    return bool(stack) or not seen.isdisjoint(known)


def _stated(value: ir.Value) -> Entries | None:
    dims = declared(value)
    count = None if dims is None else product_of(dims).fixed
    if dims is None or count is None or len(dims) > 1 or count > _LONGEST:
        return None
    alone = count == 1 and len(dims) == 1
    return tuple(
        Entry(Size.unknown(value, place), value if alone else None) for place in range(count)
    )


def _shape(node: ir.Node, known: Known, _: Seen) -> Entries | None:
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


def _concat(node: ir.Node, known: Known, seen: Seen) -> Entries | None:
    parts = [None if v is None else entries(v, known, seen) for v in node.inputs]
    if any(part is None for part in parts):
        return None
    found = tuple(entry for part in parts if part is not None for entry in part)
    return found if len(found) <= _LONGEST else None


def _slice(node: ir.Node, known: Known, seen: Seen) -> Entries | None:
    data = _first(node, known, seen)
    bounds = [constant_ints(value) for value in node.inputs[1:]]
    known_bounds = [bound[0] for bound in bounds if bound is not None and len(bound) == 1]
    whole = len(known_bounds) == len(bounds) >= 2
    if data is None or not whole or known_bounds[3:] not in ([], [1]):
        return None
    return data[known_bounds[0] : known_bounds[1]]


def _gather(node: ir.Node, known: Known, seen: Seen) -> Entries | None:
    data, places = _first(node, known, seen), constant_ints(node.inputs[-1])
    if data is None or places is None or any(not -len(data) <= p < len(data) for p in places):
        return None
    return tuple(Entry(data[place].size) for place in places)


def _first(node: ir.Node, known: Known, seen: Seen) -> Entries | None:
    """The integers of an operation that changes their axes or their type alone."""
    value = node.inputs[0]
    return None if value is None else entries(value, known, seen)


def _mul(node: ir.Node, known: Known, seen: Seen) -> Entries | None:
    parts = [None if v is None else entries(v, known, seen) for v in node.inputs]
    one, two = (*parts, None, None)[:2]
    if one is None or two is None or len(one) != 1 or len(two) != 1:
        return None
    a, b = one[0].size, two[0].size
    return (Entry(None if a is None or b is None else a * b),)


_RULES: Mapping[str, Callable[[ir.Node, Known, Seen], Entries | None]] = {
    "Shape": _shape,
    "Concat": _concat,
    "Slice": _slice,
    "Gather": _gather,
    "Mul": _mul,
    **dict.fromkeys(("Identity", "Cast", "Squeeze", "Unsqueeze", "Reshape"), _first),
}
