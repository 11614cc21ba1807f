"""Operators that are told how many heads they have: rotations and whole attentions.

A branch gets the same operator with fewer heads. Their operands are either (batch, heads,
sequence, features), or (batch, sequence, heads x features) beside attributes that count heads.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from patch_compile.passes.layouts import Layout, Mixed
from patch_compile.passes.sizes import ONE, Size, declared
from patch_compile.passes.steps import Step, Trace, integer, sole_output

__all__ = ["FUSED_RULES", "Fused", "is_attention", "kept_heads"]


@dataclass(frozen=True)
class Fused:
    """How an operator that is a whole attention says what it needs.

    Attributes:
        counts: attributes with the number of query heads, and of those of keys and values.
        apart: operands that may not be there, and why.
        scores: the operand that is added to the scores, (..., heads or 1, queries, keys).
    """

    counts: tuple[str, str]
    apart: Mapping[int, str]
    scores: int


_CACHE = "keeps all heads in one cache"
_FUSED = {
    ("", "Attention"): Fused(("q_num_heads", "kv_num_heads"), {4: _CACHE, 5: _CACHE}, 3),
    ("com.microsoft", "MultiHeadAttention"): Fused(
        ("num_heads", "num_heads"),
        {3: "adds one bias to all projections", 6: _CACHE, 7: _CACHE},
        5,
    ),
    ("com.microsoft", "GroupQueryAttention"): Fused(
        ("num_heads", "kv_num_heads"),
        {3: _CACHE, 4: _CACHE, 11: "has a sink for every head"},
        10,
    ),
}


def is_attention(node: ir.Node) -> bool:
    """Whether a node is a whole attention."""
    return (node.domain, node.op_type) in _FUSED


def kept_heads(node: ir.Node) -> int | None:
    """The heads of keys and values that an attention is told of; None if it is not."""
    fused = _FUSED.get((node.domain, node.op_type))
    return None if fused is None else integer(node, fused.counts[1]) or None


def _attention(node: ir.Node, trace: Trace) -> Step:
    fused = _FUSED[node.domain, node.op_type]
    for place, why in fused.apart.items():
        apart = node.inputs[place] if len(node.inputs) > place else None
        if apart is not None:
            raise Mixed(f"{why}: it reads '{apart.name}'")
    sole_output(node)
    _check_scores(node, fused)
    reads = [trace.layouts[v] for v in node.inputs[:3] if v is not None and v in trace.layouts]
    if len(reads) < 3:
        raise Mixed("reads queries, keys and values as one")
    query, key, value = reads
    if len(query.dims) == 4:
        return _on_four_axes(node, trace, query, key, value)
    return _on_three_axes(node, trace, (query, key, value), fused)


def _check_scores(node: ir.Node, fused: Fused) -> None:
    """What is added to the scores must be one for all heads."""
    value = node.inputs[fused.scores] if len(node.inputs) > fused.scores else None
    dims = () if value is None else declared(value)
    if value is not None and (dims is None or (len(dims) > 2 and dims[-3] != ONE)):
        raise Mixed(f"reads '{value.name}', which may have a part for every head")


def _on_four_axes(
    node: ir.Node, trace: Trace, query: Layout, key: Layout, value: Layout
) -> Step:
    if any(layout.axis != 1 or layout.outer != ONE for layout in (query, key, value)):
        raise Mixed("has its heads on another axis than the second")
    dims = (*query.dims[:3], value.dims[3])
    return Step(node, (query.at(1, dims),), trace.reads(node))


def _on_three_axes(
    node: ir.Node, trace: Trace, layouts: tuple[Layout, Layout, Layout], fused: Fused
) -> Step:
    query, key, value = layouts
    heads = [integer(node, name) or 0 for name in fused.counts]
    groups = query.groups
    if any(each.axis != 2 or each.outer != ONE for each in layouts):
        raise Mixed("has its heads on another axis than the last")
    if any(count < 1 or count % groups for count in heads):
        raise Mixed(f"has {heads[0]} heads over {heads[1]}, for {groups} groups")
    kept = Size(heads[1] // groups)
    features = value.inner.over(kept)
    if features is None or key.inner.over(kept) is None:
        raise Mixed(f"has keys or values of no {heads[1]} heads")
    inner = Size(heads[0] // groups) * features
    dims = (*query.dims[:2], Size(groups) * inner)
    counts = {name: count // groups for name, count in zip(fused.counts, heads, strict=True)}
    after = Layout(dims, 2, groups, ONE, inner)
    return Step(node, (after,), trace.reads(node), counts=counts)


def _rotary(node: ir.Node, trace: Trace) -> Step:
    layout = trace.only(node)
    heads = integer(node, "num_heads") or 0
    rank = len(layout.dims)
    if (rank, layout.axis) not in ((4, 1), (3, 2)) or layout.outer != ONE:
        raise Mixed("has its heads on another axis than it turns")
    if heads % layout.groups or (rank == 3 and heads == 0):
        raise Mixed(f"turns {heads} heads of {layout.groups} groups")
    counts = {"num_heads": heads // layout.groups} if heads else {}
    return Step(node, (layout,), trace.reads(node), counts=counts)


FUSED_RULES: Mapping[tuple[str, str], Callable[[ir.Node, Trace], Step]] = {
    **dict.fromkeys(_FUSED, _attention),
    ("", "RotaryEmbedding"): _rotary,
    ("com.microsoft", "RotaryEmbedding"): _rotary,
}
