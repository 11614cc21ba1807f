"""Where the heads of an attention lie in a value, and how moves carry them.

Along one axis of such a value lie `outer` times G groups of `inner` elements each, one group
for every head of keys and values; everything else of the value is alike for all groups. A move
that keeps this apart does the same to some of the groups as to all of them.

G: groups.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from patch_compile.passes.sizes import ONE, Entry, Size, product_of

__all__ = [
    "Fixed",
    "Layout",
    "Mixed",
    "PerGroup",
    "Written",
    "expanded",
    "reshaped",
    "resolved",
    "turned",
    "written",
]


class Mixed(Exception):
    """Groups meet, or may for all that can be shown; says what an operation does."""


@dataclass(frozen=True)
class Layout:
    """A value's sizes and where its groups lie.

    Attributes:
        dims: of all axes, with every group.
        axis: where the groups lie, from 0.
        groups: G.
        outer: how often they lie there, one after the other.
        inner: elements of a group.
    """

    dims: tuple[Size, ...]
    axis: int
    groups: int
    outer: Size = ONE
    inner: Size = ONE

    def __post_init__(self) -> None:
        assert self.dims[self.axis] == self.outer * Size(self.groups) * self.inner

    @property
    def from_end(self) -> int:
        """The axis of the groups, counted from the last, which is 1."""
        return len(self.dims) - self.axis

    def alike(self, other: "Layout") -> bool:
        """Whether the groups of two values that broadcast meet one to one."""
        mine = (self.from_end, self.outer, self.inner)
        return mine == (other.from_end, other.outer, other.inner)

    def within(self, count: int) -> tuple[Size, ...]:
        """The sizes that are left with `count` of the groups."""
        cut = self.outer * Size(count) * self.inner
        return (*self.dims[: self.axis], cut, *self.dims[self.axis + 1 :])

    def at(self, axis: int, dims: Sequence[Size]) -> "Layout":
        """The same groups in a value of other sizes."""
        return Layout(tuple(dims), axis, self.groups, self.outer, self.inner)


@dataclass(frozen=True)
class Fixed:
    """An entry of a shape that all branches write alike."""

    number: int


@dataclass(frozen=True)
class PerGroup:
    """An entry of a shape that is this number for each group of a branch."""

    number: int


# What stands in the shape of a branch's Reshape or Expand; an Entry is read at run time.
Written = tuple[Fixed | PerGroup | Entry, ...]


def turned(layout: Layout, order: Sequence[int]) -> Layout:
    """Where the groups lie after a Transpose."""
    return layout.at(list(order).index(layout.axis), [layout.dims[axis] for axis in order])


def reshaped(layout: Layout, target: Sequence[Entry], *, zero_copies: bool) -> Layout:
    """Where the groups lie after a Reshape to `target`.

    A Reshape keeps the order of all elements: read from the end, axes take up what lies
    inside a group until that is used up; the next one holds the groups.

    Raises:
        Mixed: if no axis holds them whole.
    """
    dims = resolved(layout.dims, target, zero_copies=zero_copies)
    inside = product_of([layout.inner, *layout.dims[layout.axis + 1 :]])
    for axis in reversed(range(len(dims))):
        rest = inside.over(dims[axis])
        if rest is not None:
            inside = rest
            continue
        outer = dims[axis].over(Size(layout.groups) * inside)
        if outer is None:
            break
        return Layout(dims, axis, layout.groups, outer, inside)
    raise Mixed("joins or parts groups of heads")


def resolved(
    dims: Sequence[Size], target: Sequence[Entry], *, zero_copies: bool
) -> tuple[Size, ...]:
    """The sizes of a Reshape's result: 0 copies a size, -1 is what is left.

    Raises:
        Mixed: if they are not known.
    """
    found: list[Size | None] = []
    for place, entry in enumerate(target):
        size = entry.size
        if size == Size(0) and zero_copies and place < len(dims):
            size = dims[place]
        found.append(None if size == Size(-1) else size)
        if size is None:
            raise Mixed("has a shape that is known at run time alone")
    known = [size for size in found if size is not None]
    if len(known) == len(found):
        return tuple(known)
    left = product_of(dims).over(product_of(known))
    if left is None or len(known) < len(found) - 1:
        raise Mixed("has a shape that is known at run time alone")
    return tuple(left if size is None else size for size in found)


def written(layout: Layout, after: Layout, target: Sequence[Entry]) -> Written | None:
    """The shape of a Reshape that works for any number of groups; None if there is none.

    A number where one is known, 0 where a size is copied, -1 once at most: those need no
    node. Where that is not enough, sizes are read where the graph itself reads them.
    """
    found: list[Fixed | PerGroup] = []
    for axis, size in enumerate(after.dims):
        if axis == after.axis and after.outer.fixed and after.inner.fixed:
            found.append(PerGroup(after.outer.fixed * after.inner.fixed))
        elif axis != after.axis and size.fixed is not None:
            found.append(Fixed(size.fixed))
        elif (
            axis != after.axis
            and axis != layout.axis
            and layout.dims[axis : axis + 1] == (size,)
        ):
            found.append(Fixed(0))
        else:
            found.append(Fixed(-1))
    if found.count(Fixed(-1)) <= 1:
        return tuple(found)
    return _read(after, found, target)


def _read(
    after: Layout, found: Sequence[Fixed | PerGroup], target: Sequence[Entry]
) -> Written | None:
    """The same with sizes that are read at run time, in place of 0 and -1."""
    read: list[Fixed | PerGroup | Entry] = []
    for place, (mine, theirs) in enumerate(zip(found, target, strict=True)):
        if mine not in (Fixed(0), Fixed(-1)):
            read.append(mine)
        elif theirs.size == Size(-1):
            read.append(Fixed(-1))
        elif theirs.source is not None and place != after.axis:
            read.append(theirs)
        else:
            return None
    return tuple(read)


def expanded(layout: Layout, target: Sequence[Entry], name: str) -> tuple[Layout, Written]:
    """Where the groups lie after an Expand to `target`, and the shape that it takes.

    Axes that stay as they are get a 1: the shape then names no group.

    Raises:
        Mixed: if an axis grows to a size that the graph reads nowhere.
    """
    new = len(target) - len(layout.dims)
    if new < 0:
        target, new = [*[Entry(ONE)] * -new, *target], 0
    dims: list[Size] = []
    shape: list[Fixed | PerGroup | Entry] = []
    for place, entry in enumerate(target):
        old = ONE if place < new else layout.dims[place - new]
        grows = old == ONE and entry.size != ONE
        if grows and (entry.size is None or entry.size.names) and entry.source is None:
            raise Mixed("grows to a size that is known at run time alone")
        if not grows and entry.size not in (old, ONE):
            raise Mixed(f"may make '{name}' larger along axis {place}")
        dims.append(entry.size if grows and entry.size is not None else old)
        fixed = None if entry.size is None else entry.size.fixed
        shape.append((entry if fixed is None else Fixed(fixed)) if grows else Fixed(1))
    return layout.at(layout.axis + new, dims), tuple(shape)
