"""Elementwise operations between products, found by walking back from the last one.

This walk is by hand: the rewrite engine matches a graph of known nodes, and cannot say "any
elementwise operations, however many".

I: features of the inner axis, the N of the first products and the K of the last.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from patch_compile.passes.constants import fixed_tensor
from patch_compile.passes.sites import constant_tensor, constant_weight

__all__ = ["ELEMENTWISE", "Region", "Uncut", "bias_of", "find_region", "is_product", "sides"]

# Operations that treat the features of their last axis alike and apart.
ELEMENTWISE = {
    "": "Abs Add Cast CastLike Celu Clip Div Elu Erf Exp Gelu HardSigmoid HardSwish Identity "
    "LeakyRelu Log Max Min Mish Mul Neg PRelu Pow Reciprocal Relu Selu Sigmoid Softplus "
    "Softsign Sqrt Sub Swish Tanh ThresholdedRelu Where",
    "com.microsoft": "BiasGelu FastGelu Gelu QuickGelu",
}
# What lies between the products of an MLP is shorter than this in every known export.
_LONGEST = 48


@dataclass(frozen=True)
class Region:
    """What lies between the products that make an inner axis and the one that sums over it.

    Attributes:
        root: the product that sums.
        products: the products that make the axis, in the order they are read.
        nodes: the nodes between, each after those it reads; they read products, one another,
            and values that are constant or the same for every feature.
        flattened: Reshapes of leading axes are among them; every product is 2-D, so their
            rows are the root's rows and the Reshapes may go.
    """

    root: ir.Node
    products: tuple[ir.Node, ...]
    nodes: tuple[ir.Node, ...]
    flattened: bool


@dataclass(frozen=True)
class Uncut:
    """Products around operations that cannot be cut along their inner axis, and why."""

    products: tuple[ir.Node, ...]
    reason: str


def find_region(root: ir.Node) -> Region | Uncut | None:
    """Finds the region before a product.

    Returns:
        The region, or why it cannot be cut, or None if no product lies before `root` with
        elementwise operations between.
    """
    features = _features(root)
    nodes, leaves = _walk(root, strict=True)
    if not any(_is_product(leaf) for leaf in leaves):
        nodes, leaves = _walk(root, strict=False)
        if not leaves or not all(_is_product(leaf) or _is_even(leaf) for leaf in leaves):
            return None
    products = [leaf.producer() for leaf in leaves if _is_product(leaf)]
    found = tuple(node for node in products if node is not None)
    if not found:
        return None
    reasons = [
        *_nested(found),
        *_kept_apart(found, nodes, root),
        *(_reads(leaf, features) for leaf in leaves),
        *_odd_shapes(root, found, nodes, features),
    ]
    why = next((reason for reason in reasons if reason is not None), None)
    if why is not None:
        return Uncut(found, why)
    ordered = _in_order(root, found, nodes)
    return Region(
        root,
        tuple(node for node in ordered if node in found),
        tuple(node for node in ordered if node not in found),
        flattened=any(node.op_type == "Reshape" for node in nodes),
    )


def _walk(root: ir.Node, *, strict: bool) -> tuple[tuple[ir.Node, ...], tuple[ir.Value, ...]]:
    """Nodes before `root` through elementwise operations, and the values they start from.

    Args:
        root: the product at the end.
        strict: take a node only if nothing outside reads it.
    """
    inside: dict[ir.Node, None] = {root: None}
    changed = True
    while changed and len(inside) <= _LONGEST:
        changed = False
        for value in _outside(inside):
            node = value.producer()
            if node is not None and _passes(node) and not (strict and _escapes(value, inside)):
                inside[node] = None
                changed = True
    leaves = tuple(_outside(inside))
    return tuple(node for node in inside if node is not root), leaves


def _outside(inside: dict[ir.Node, None]) -> list[ir.Value]:
    """Values that the nodes read and do not make; of the first one, the product, only X."""
    found: dict[ir.Value, None] = {}
    for index, node in enumerate(inside):
        for value in _operands(node, root=index == 0):
            for each in (value, *_added(value)):
                if each.producer() not in inside:
                    found[each] = None
    return list(found)


def bias_of(product: ir.Node) -> ir.Value | None:
    """What a Gemm adds to its product: an Add will, once the weight is lowered."""
    given = product.op_type == "Gemm" and len(product.inputs) > 2
    return product.inputs[2] if given else None


def _added(value: ir.Value) -> tuple[ir.Value, ...]:
    """The bias of the product that makes a value: it is read as if an Add were there."""
    node = value.producer()
    bias = None if node is None or not is_product(node) else bias_of(node)
    return () if bias is None else (bias,)


def _nested(products: Sequence[ir.Node]) -> Iterator[str]:
    for node in products:
        for bias in _added(node.outputs[0]):
            if _is_product(bias):
                yield f"Gemm '{node.name}' adds another product, '{bias.name}'"


def _operands(node: ir.Node, *, root: bool = False) -> Iterator[ir.Value]:
    """What a node computes with: not the weight of a product, nor a Reshape's shape."""
    count = 1 if root or node.op_type == "Reshape" else len(node.inputs)
    yield from (value for value in node.inputs[:count] if value is not None)


def _passes(node: ir.Node) -> bool:
    if len(node.outputs) != 1 or constant_tensor(node.outputs[0]) is not None:
        return False
    return node.op_type in ELEMENTWISE.get(node.domain, "").split() or _keeps_features(node)


def _keeps_features(node: ir.Node) -> bool:
    """A Reshape that leaves the last axis as it was."""
    value = node.inputs[0] if node.op_type == "Reshape" and not node.domain else None
    width = None if value is None or _may_change(node.inputs[1]) else _last(value)
    return width is not None and width == _last(node.outputs[0])


def _escapes(value: ir.Value, inside: dict[ir.Node, None]) -> bool:
    """Whether anything else reads a value; a Gemm that a node inside reads may add it."""
    readers: list[ir.Node] = []
    for node, place in value.uses():
        added = _adds(node, place)
        readers += [use.node for use in node.outputs[0].uses()] if added else [node]
    return value.is_graph_output() or any(reader not in inside for reader in readers)


def _adds(node: ir.Node, place: int) -> bool:
    """Whether what a node reads at a place is its bias."""
    return place == 2 and is_product(node)


def is_product(node: ir.Node) -> bool:
    """Whether a node multiplies by a constant matrix."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in ("MatMul", "Gemm"):
        return False
    weight = constant_weight(node)
    tensor = None if weight is None else constant_tensor(weight[0])
    return tensor is not None and tensor.shape.rank() == 2


def _is_product(value: ir.Value) -> bool:
    node = value.producer()
    return node is not None and is_product(node)


def _is_even(value: ir.Value) -> bool:
    """A constant, or a value that is one number for all features."""
    return fixed_tensor(value) is not None or _last(value) == 1


def _reads(value: ir.Value, features: int) -> str | None:
    """Why a value that the region starts from cannot be cut, or None if it can."""
    if _is_product(value):
        node = value.producer()
        assert node is not None
        if _width(node) != features:
            return f"'{value.name}' has {_width(node)} features, not {features}"
        return None
    tensor = fixed_tensor(value)
    if tensor is None:
        return None if _last(value) == 1 else _foreign(value)
    if tensor.shape.rank() and tensor.shape.numpy()[-1] not in (1, features):
        return f"constant '{value.name}' has shape {tuple(tensor.shape.numpy())}"
    return None


def _foreign(value: ir.Value) -> str:
    node = value.producer()
    if node is not None and _passes(node):
        others = sorted({f"{use.node.op_type} '{use.node.name}'" for use in value.uses()})
        readers = [*others, *(["the graph's caller"] if value.is_graph_output() else [])]
        return f"'{value.name}' is read by {', '.join(readers)}"
    kind = _given(value) if node is None else f"the output of a {node.op_type}"
    return f"the operations between also read '{value.name}', {kind}"


def _given(value: ir.Value) -> str:
    return "which an input may replace" if _may_change(value) else "an input"


def _may_change(value: ir.Value | None) -> bool:
    """Whether a value is a constant that a caller may replace."""
    return value is not None and value.const_value is not None and value.is_graph_input()


def _kept_apart(
    products: Sequence[ir.Node], nodes: Sequence[ir.Node], root: ir.Node
) -> Iterator[str]:
    """Whatever is read from outside must stay as it is; a product reads its X whole."""
    for node in (*products, *nodes):
        value = node.outputs[0]
        if value.is_graph_output():
            yield f"'{value.name}' is an output of the graph"
        for use in value.uses():
            inside = use.node in nodes or (use.node in products and _adds(*use))
            if not inside and (use.node, use.idx) != (root, 0):
                yield f"'{value.name}' is also read by {use.node.op_type} '{use.node.name}'"


def _odd_shapes(
    root: ir.Node, products: Sequence[ir.Node], nodes: Sequence[ir.Node], features: int
) -> Iterator[str]:
    """With Reshapes between, rows must be known to correspond."""
    biases = [bias for node in products for bias in _added(node.outputs[0])]
    if len(nodes) + len(biases) > _LONGEST:
        yield f"more than {_LONGEST} operations lie between them"
    if not any(node.op_type == "Reshape" for node in nodes):
        return
    value = root.inputs[0]
    assert value is not None
    for made in (value, *(node.outputs[0] for node in products)):
        if made.shape is None or made.shape.rank() != 2:
            yield f"a Reshape lies between them and '{made.name}' is not known to be 2-D"
    made_here = {node.outputs[0] for node in (*products, *nodes)}
    for operand in (*biases, *(value for node in nodes for value in _operands(node))):
        tensor = fixed_tensor(operand)
        if operand in made_here or (tensor is not None and _is_row(tensor, features)):
            continue
        yield f"'{operand.name}' stands beside a Reshape and is no constant along one axis"


def _is_row(tensor: ir.TensorProtocol, features: int) -> bool:
    """One number, or one for each feature and nothing else."""
    row = tensor.size == features and int(tensor.shape.numpy()[-1]) == features
    return tensor.size == 1 or row


def _in_order(
    root: ir.Node, products: Sequence[ir.Node], nodes: Sequence[ir.Node]
) -> tuple[ir.Node, ...]:
    """Sorts nodes before `root` so that each comes after those it reads, as operands do."""
    wanted, found = {*products, *nodes}, dict[ir.Node, None]()

    def visit(node: ir.Node) -> None:
        made = node in products
        for value in _added(node.outputs[0]) if made else _operands(node, root=node is root):
            producer = value.producer()
            if producer in wanted and producer not in found:
                visit(producer)
        found[node] = None

    visit(root)
    return tuple(node for node in found if node is not root)


def _features(root: ir.Node) -> int:
    return sides(root)[0]


def _width(node: ir.Node) -> int:
    return sides(node)[1]


def sides(node: ir.Node) -> tuple[int, int]:
    """(K, N) of a product over a constant matrix."""
    weight = constant_weight(node)
    assert weight is not None
    value, transposed = weight
    tensor = constant_tensor(value)
    assert tensor is not None
    first, second = tensor.shape.numpy()
    return (int(first), int(second)) if transposed else (int(second), int(first))


def _last(value: ir.Value) -> int | None:
    """The size of a value's last axis where it is known; 1 for a scalar."""
    if value.shape is None:
        return None
    if value.shape.rank() == 0:
        return 1
    size = value.shape[-1]
    return size if isinstance(size, int) else None
