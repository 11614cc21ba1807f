"""Where groups lie after a move is where numpy finds their labels."""

from itertools import pairwise
from math import prod

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from patch_compile.passes.layouts import (
    Fixed,
    Layout,
    Mixed,
    PerGroup,
    expanded,
    reshaped,
    turned,
    written,
)
from patch_compile.passes.sizes import ONE, Entry, Size, entries, follows, product_of

small = st.integers(1, 3)
B, S = Size(1, ("batch",)), Size(1, ("sequence",))


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    groups, outer, inner = draw(st.integers(2, 4)), draw(small), draw(small)
    before, after = (draw(st.lists(small, max_size=2)) for _ in range(2))
    dims = [*before, outer * groups * inner, *after]
    sizes = tuple(map(Size, dims))
    return Layout(sizes, len(before), groups, Size(outer), Size(inner))


def numbers(layout: Layout) -> tuple[int, ...]:
    return tuple(size.number for size in layout.dims)


def labels(layout: Layout) -> NDArray[np.int64]:
    """The group of every element."""
    places = np.arange(layout.dims[layout.axis].number)
    along = places // layout.inner.number % layout.groups
    shape = [1] * len(layout.dims)
    shape[layout.axis] = -1
    return np.broadcast_to(along.reshape(shape), numbers(layout)).copy()


@given(layouts(), st.data())
def test_a_reshape_is_followed_exactly_where_one_axis_holds_the_groups(
    layout: Layout, data: st.DataObject
) -> None:
    total = prod(numbers(layout))
    divisors = [n for n in range(1, total + 1) if total % n == 0]
    edges = sorted([1, *data.draw(st.lists(st.sampled_from(divisors), max_size=3)), total])
    if any(high % low for low, high in pairwise(edges)):
        return
    target = data.draw(st.permutations([high // low for low, high in pairwise(edges)]))
    found = labels(layout).reshape(target)
    try:
        after = reshaped(layout, [Entry(Size(n)) for n in target], zero_copies=True)
    except Mixed:
        assert not any(_alone(found, axis) for axis in range(found.ndim))
        return
    assert numbers(after) == tuple(target)
    np.testing.assert_array_equal(found, labels(after))
    shape = written(layout, after, [Entry(Size(n)) for n in target])
    assert shape is not None
    every = np.arange(total).reshape(numbers(layout))
    for count in range(1, layout.groups):
        part = every.compress(labels(layout)[_line(layout)] < count, axis=layout.axis)
        wanted = every.reshape(target).compress(
            labels(after)[_line(after)] < count, after.axis
        )
        given = [
            part.shape[place] if entry == Fixed(0) else _filled(entry, count)
            for place, entry in enumerate(shape)
        ]
        np.testing.assert_array_equal(part.reshape(given), wanted)


def _alone(found: NDArray[np.int64], axis: int) -> bool:
    """Whether the labels follow from one axis alone."""
    first = np.moveaxis(found, axis, 0).reshape(found.shape[axis], -1)
    return bool((first == first[:, :1]).all())


def _line(layout: Layout) -> tuple[int | slice, ...]:
    return tuple(slice(None) if a == layout.axis else 0 for a in range(len(layout.dims)))


def _filled(entry: object, count: int) -> int:
    assert isinstance(entry, Fixed | PerGroup)
    return entry.number * (count if isinstance(entry, PerGroup) else 1)


@given(layouts(), st.data())
def test_a_transpose_takes_the_groups_along(layout: Layout, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(layout.dims))))
    np.testing.assert_array_equal(
        labels(turned(layout, order)), labels(layout).transpose(order)
    )


def test_an_expand_names_no_group() -> None:
    layout = Layout((B, Size(3), ONE, S, Size(8)), 1, 3)
    target = [Entry(B), Entry(Size(3)), Entry(Size(2)), Entry(S), Entry(Size(8))]
    after, shape = expanded(layout, target, "k")
    assert after.dims == (B, Size(3), Size(2), S, Size(8))
    assert shape == (Fixed(1), Fixed(1), Fixed(2), Fixed(1), Fixed(1))
    with pytest.raises(Mixed, match="may make 'k' larger along axis 3"):
        expanded(layout, [*target[:3], Entry(Size(5)), target[4]], "k")


def test_sizes_that_are_known_at_run_time_alone_are_copied_once_or_read() -> None:
    flat = Layout((Size(1, ("tokens",)), Size(24)), 1, 3, ONE, Size(8))
    source = ir.Value(name="b")
    target = [Entry(B, source), Entry(S, source), Entry(Size(3)), Entry(Size(8))]
    after = reshaped(flat, target, zero_copies=True)
    assert written(flat, after, target) == (target[0], target[1], PerGroup(1), Fixed(8))
    assert written(flat, after, [Entry(B), *target[1:]]) is None
    whole = Layout((B, S, Size(24)), 2, 3, ONE, Size(8))
    assert written(whole, after, target) == (Fixed(0), Fixed(0), PerGroup(1), Fixed(8))


def test_sizes_divide_where_their_names_allow_it() -> None:
    assert (B * S * Size(6)).over(S * Size(2)) == B * Size(3)
    assert B.over(S) is None
    assert Size(6).over(Size(4)) is None
    assert product_of([]) == ONE


def test_a_shape_is_read_through_what_exporters_put_it_together_with() -> None:
    x = ir.Value(name="x", shape=ir.Shape(["batch", "sequence", 8]))
    whole = ir.node("Shape", [x])
    first = ir.node("Gather", [whole.outputs[0], _constant(0)])
    lone = ir.node("Unsqueeze", [first.outputs[0], _constant([0])])
    lone.outputs[0].shape = ir.Shape([1])
    last = ir.node("Slice", [whole.outputs[0], _constant([-1]), _constant([2**62])])
    shape = ir.node("Concat", [lone.outputs[0], _constant([-1]), last.outputs[0]], {"axis": 0})
    found = entries(shape.outputs[0], {})
    assert found is not None
    assert [entry.size for entry in found] == [B, Size(-1), Size(8)]
    assert [entry.source for entry in found] == [lone.outputs[0], None, None]
    assert follows(lone.outputs[0], {x: ()})
    assert not follows(lone.outputs[0], {shape.outputs[0]: ()})


def _constant(numbers: object) -> ir.Value:
    return ir.Value(name="c", const_value=ir.tensor(np.array(numbers, np.int64)))
