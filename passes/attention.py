"""An attention between the products that make its heads and the one that sums over them.

Like the walk of `regions`, this one is by hand: no pattern says "whatever an exporter writes
between q, k, v and o, as long as no head meets another". Each node is shown to treat all
groups of heads alike (`headwise`), or the attention is left whole with the reason.

G: groups, one for every head of keys and values.
"""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import onnx_ir as ir

from patch_compile.passes.fused_heads import is_attention, kept_heads
from patch_compile.passes.headwise import MOVES, step_of
from patch_compile.passes.layouts import Layout, Mixed, resolved
from patch_compile.passes.regions import ELEMENTWISE, bias_of, is_product, sides
from patch_compile.passes.sites import constant_tensor
from patch_compile.passes.sizes import ONE, Size, declared, entries
from patch_compile.passes.steps import Step, Trace, beside, integer

__all__ = ["Attention", "Whole", "find_attention"]

# Nodes of an attention, its mask and its rotation included; known exports have about 100.
_MOST = 400


@dataclass(frozen=True, eq=False)
class Attention:
    """What lies between the products that make heads and the one that sums over them.

    Attributes:
        root: the product that sums.
        products: those that make the heads, in graph order.
        stacks: of each product, how often all groups lie along its N, one after another.
        groups: G.
        steps: the nodes between, in an order in which each comes after those it reads.
        kernels: operations that an engine launches once more for a second branch: the
            attention itself, and one for each product whose heads are worked on before it.
    """

    root: ir.Node
    products: tuple[ir.Node, ...]
    stacks: tuple[int, ...]
    groups: int
    steps: tuple[Step, ...]
    kernels: int


@dataclass(frozen=True)
class Whole:
    """An attention that cannot be cut, and why."""

    products: tuple[ir.Node, ...]
    reason: str


def find_attention(root: ir.Node) -> Attention | Whole | None:
    """Finds the attention before a product over a constant weight.

    Returns:
        The attention, or why it cannot be cut, or None if none lies before `root`.
    """
    above = _above(root)
    if above is None or not any(_is_core(node) for node in above):
        return None
    products = tuple(node for node in above if is_product(node))
    inside = _between(above)
    if not any(_is_core(node) for node in inside):
        return None
    try:
        return _found(root, products, inside)
    except Mixed as mixed:
        return Whole(products, str(mixed))


def _found(
    root: ir.Node, products: tuple[ir.Node, ...], inside: tuple[ir.Node, ...]
) -> Attention:
    _check_apart(products, inside, root)
    starts = [_start(product) for product in products]
    groups = min(heads for heads, _ in starts)
    if groups < 2:
        raise Mixed("it has one head of keys and values")
    trace = Trace(groups, {})
    for product, (_, times) in zip(products, starts, strict=True):
        trace.layouts[product.outputs[0]] = _made(product, groups, times)
        _check_bias(product, trace.layouts[product.outputs[0]])
    steps = _needed(root, [_step(node, trace) for node in inside])
    _check_end(root, trace)
    for step in steps:
        if step.refusal is not None:
            raise Mixed(f"{_named(step.node)} {step.refusal}")
    stacks = tuple(times for _, times in starts)
    return Attention(root, products, stacks, groups, steps, _kernels(products, steps))


def _step(node: ir.Node, trace: Trace) -> Step:
    try:
        return step_of(node, trace)
    except Mixed as mixed:
        raise Mixed(f"{_named(node)} {mixed}") from mixed


def _named(node: ir.Node) -> str:
    return f"{node.op_type} '{node.name or node.outputs[0].name}'"


def _above(root: ir.Node) -> tuple[ir.Node, ...] | None:
    """All nodes that the root's X follows from, down to products; each after what it reads.

    Returns None if they are more than an attention has.
    """
    start = root.inputs[0]
    found: dict[ir.Node, None] = {}
    count = 0
    stack = [] if start is None or start.producer() is None else [(start.producer(), False)]
    while stack:
        node, done = stack.pop()
        if node is None or node in found:
            continue
        if done:
            found[node] = None
            count += 1 + (is_product(node) and bias_of(node) is not None)
            if count > _MOST:
                return None
            continue
        stack.append((node, True))
        values = [bias_of(node)] if is_product(node) else [*node.inputs]
        reads = [value.producer() for value in values if value is not None]
        stack += [(each, False) for each in reversed(reads)]
    return tuple(found)


def _is_core(node: ir.Node) -> bool:
    """Whether a node is an attention, or one of its products of two computed values."""
    if is_product(node):
        return False
    computed = all(v is not None and constant_tensor(v) is None for v in node.inputs)
    return is_attention(node) or (node.op_type == "MatMul" and computed)


def _between(above: Iterable[ir.Node]) -> tuple[ir.Node, ...]:
    """The nodes that work on what the products made, in order; sizes are not worked on."""
    made: set[ir.Value] = set()
    inside = []
    for node in above:
        if is_product(node):
            made.update(node.outputs)
        elif node.op_type != "Shape" and not made.isdisjoint(_data(node)):
            inside.append(node)
            made.update(node.outputs)
    return tuple(inside)


def _data(node: ir.Node) -> Iterator[ir.Value]:
    """What a node computes with; the second operand of a Reshape or Expand is a shape."""
    count = 1 if node.op_type in ("Reshape", "Expand") else len(node.inputs)
    yield from (value for value in node.inputs[:count] if value is not None)


def _check_apart(
    products: tuple[ir.Node, ...], between: tuple[ir.Node, ...], root: ir.Node
) -> None:
    """Whatever is read from outside, but for its sizes, must stay as it is."""
    inside = {*between}
    for value in (value for node in (*products, *between) for value in node.outputs):
        if value.is_graph_output():
            raise Mixed(f"'{value.name}', which holds all heads, is an output of the graph")
        for use in value.uses():
            # A product reads its X whole, and the last one's bias is added once.
            apart = use.node not in inside and (use.node, use.idx) != (root, 0)
            if apart and not _is_size(use.node, inside):
                raise Mixed(f"'{value.name}' is also read by {_named(use.node)}")


def _is_size(node: ir.Node, inside: set[ir.Node]) -> bool:
    """Whether a node outside yields but sizes that shapes inside are made of."""
    seen, stack = {node}, [node]
    while stack:
        values = stack.pop().outputs
        uses = [use for value in values for use in value.uses()]
        outside = [use.node for use in uses if use.node not in inside]
        shapes = all(_is_shape(use.node, use.idx) for use in uses if use.node in inside)
        if not shapes or any(value.is_graph_output() for value in values):
            return False
        stack += [reader for reader in outside if reader not in seen]
        seen.update(outside)
    return node.op_type == "Shape"


def _is_shape(node: ir.Node, place: int) -> bool:
    return node.op_type in ("Reshape", "Expand") and place == 1


def _start(product: ir.Node) -> tuple[int, int]:
    """The heads that a product makes, and how often it makes them (3 if q, k and v are one).

    The operation that parts heads from one another says how many there are.
    """
    width, stacks = sides(product)[1], 1
    value = product.outputs[0]
    while True:
        node = next((use.node for use in value.uses() if use.node.op_type != "Shape"), None)
        if node is None:
            break
        heads = kept_heads(node)
        if heads is not None:
            return heads, stacks
        count, feature = _tail(node) if node.op_type == "Reshape" else (None, None)
        if feature is not None and (feature < width or (feature == width and count == 1)):
            if width % feature:
                break
            return width // feature, stacks
        if node.op_type == "Split":
            stacks, width = stacks * len(node.outputs), width // len(node.outputs)
        elif not _keeps_width(node):
            break
        value = node.outputs[0]
    raise Mixed(f"no Reshape parts the features of '{product.outputs[0].name}' into heads")


def _tail(node: ir.Node) -> tuple[int | None, int | None]:
    """The last two sizes of a Reshape's result, where they are known numbers."""
    value, shape = (*node.inputs, None)[:2]
    dims = None if value is None else declared(value)
    target = None if shape is None else entries(shape, {})
    found = declared(node.outputs[0]) or ()
    if dims is not None and target is not None:
        with suppress(Mixed):
            found = resolved(dims, target, zero_copies=not integer(node, "allowzero"))
    count, feature = [None, None, *(size.fixed for size in found)][-2:]
    return count, feature


def _keeps_width(node: ir.Node) -> bool:
    known = ELEMENTWISE.get(node.domain, "").split()
    return node.op_type in (*known, "Reshape", "RotaryEmbedding")


def _made(product: ir.Node, groups: int, stacks: int) -> Layout:
    width = sides(product)[1]
    inner, rest = divmod(width, groups * stacks)
    x = product.inputs[0]
    dims = None if x is None else declared(x)
    if rest:
        raise Mixed(f"'{product.outputs[0].name}' has {width} features for {groups} groups")
    if dims is None:
        raise Mixed(f"the shape of what makes '{product.outputs[0].name}' is unknown")
    made = (*dims[:-1], Size(width))
    return Layout(made, len(dims) - 1, groups, Size(stacks), Size(inner))


def _check_bias(product: ir.Node, layout: Layout) -> None:
    """Refuses a Gemm whose bias a branch can have no part of: it will be an Add."""
    bias = bias_of(product)
    if bias is None:
        return
    try:
        beside(bias, layout)
    except Mixed as mixed:
        raise Mixed(f"{_named(product)} {mixed}") from mixed
    if any(size != ONE for size in (declared(bias) or ())[:-1]):
        raise Mixed(f"{_named(product)} adds '{bias.name}', which has rows")


def _needed(root: ir.Node, steps: list[Step]) -> tuple[Step, ...]:
    """Leaves out steps that nothing reads once chains of moves are one."""
    wanted = {root.inputs[0]}
    kept = []
    for step in reversed(steps):
        if wanted.isdisjoint(step.node.outputs):
            continue
        wanted.update(step.reads)
        kept.append(step)
    return tuple(reversed(kept))


def _check_end(root: ir.Node, trace: Trace) -> None:
    value = root.inputs[0]
    layout = None if value is None else trace.layouts.get(value)
    if layout is None:
        raise Mixed("the last product reads no heads")
    if layout.axis != len(layout.dims) - 1 or layout.outer != ONE:
        raise Mixed("the last product does not sum over heads, one after another")


def _kernels(products: tuple[ir.Node, ...], steps: tuple[Step, ...]) -> int:
    """One for the attention, one for every product whose heads are worked on before it."""
    makers: dict[ir.Value, set[ir.Node]] = {p.outputs[0]: {p} for p in products}
    worked: set[ir.Node] = set()
    for step in steps:
        known = [] if _is_core(step.node) else [makers.get(v, set()) for v in step.reads]
        before = set[ir.Node]().union(*known)
        if len(before) == 1 and not (step.node.op_type in MOVES or _follows_at_once(step)):
            worked |= before
        for value in step.node.outputs:
            makers[value] = before
    return 1 + len(worked)


def _follows_at_once(step: Step) -> bool:
    """Biases and scales on flat features: kernels of products do them on the way out."""
    (first, *_) = step.layouts
    flat = first.axis == len(first.dims) - 1
    return flat and step.node.op_type in ELEMENTWISE.get(step.node.domain, "").split()
