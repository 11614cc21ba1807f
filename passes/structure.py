"""Which weights of a graph meet: those before and after an inner axis, those of one X."""

from collections import defaultdict
from collections.abc import Iterable, Iterator

import onnx_ir as ir

from patch_compile.passes.attention import Attention, Whole, find_attention
from patch_compile.passes.regions import Uncut, find_region, is_product, sides
from patch_compile.passes.sites import Site, constant_weight
from patch_compile.tiles.blocks import Block, Heads, Structure

__all__ = ["find_structure"]


def find_structure(model: ir.Model, sites: Iterable[Site]) -> Structure:
    """Lists blocks and siblings among the products over the given weights, in graph order."""
    names = {alias: site.name for site in sites for alias in (site.name, *site.aliases)}
    found = list(_products(model, names))
    counts: defaultdict[str, int] = defaultdict(int)
    for _, name in found:
        counts[name] += 1
    blocks = [block for node, _ in found if (block := _block(node, names, counts)) is not None]
    inputs: defaultdict[ir.Value, list[str]] = defaultdict(list)
    for node, name in found:
        if counts[name] == 1 and node.inputs[0] is not None:
            inputs[node.inputs[0]].append(name)
    siblings = tuple(tuple(group) for group in inputs.values() if len(group) > 1)
    return Structure(tuple(blocks), siblings)


def _products(model: ir.Model, names: dict[str, str]) -> Iterator[tuple[ir.Node, str]]:
    for node in model.graph:
        name = _weight(node)
        if is_product(node) and name in names:
            yield node, names[name]


def _weight(node: ir.Node) -> str:
    weight = constant_weight(node)
    return "" if weight is None else weight[0].name or ""


def _block(node: ir.Node, names: dict[str, str], counts: dict[str, int]) -> Block | None:
    region = find_region(node) or find_attention(node)
    if region is None:
        return None
    columns = names[_weight(node)]
    rows = tuple(names.get(_weight(product), _weight(product)) for product in region.products)
    one_input = len({id(product.inputs[0]) for product in region.products}) == 1
    attends = isinstance(region, Attention | Whole)
    if isinstance(region, Uncut | Whole):
        return Block(rows, columns, one_input, region.reason, attends)
    shared = [name for name in (*rows, columns) if counts[name] > 1]
    why = f"{counts[shared[0]]} products multiply by '{shared[0]}'" if shared else None
    heads = _heads(region) if isinstance(region, Attention) else None
    return Block(rows, columns, one_input, why, attends, heads)


def _heads(region: Attention) -> Heads:
    features = sides(region.root)[0] // region.groups
    return Heads(region.groups, features, region.stacks, region.kernels)
