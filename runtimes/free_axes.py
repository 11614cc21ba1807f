"""Axes whose size a graph implies without saying it.

onnxruntime-genai's builder gives the features of a cached head a symbol, `kv_cache_dim`,
and the attention that reads the cache takes one size alone.
"""

from collections.abc import Iterator
from typing import Any

import onnx

__all__ = ["implied_sizes", "pin_axes"]

_ATTENTION = ("com.microsoft", "GroupQueryAttention")


def pin_axes(options: Any, graph: onnx.GraphProto) -> None:
    """Tells ONNX Runtime the sizes that a graph implies; its inputs then show them.

    Args:
        options: `onnxruntime.SessionOptions`.
        graph: of the model that the session is for.
    """
    for symbol, size in implied_sizes(graph).items():
        options.add_free_dimension_override_by_name(symbol, size)


def implied_sizes(graph: onnx.GraphProto) -> dict[str, int]:
    """Returns the size of each symbol that stands for the features of a cached head.

    GroupQueryAttention reads q, k and v either apart, k being (batch, tokens, H_kv D), or side
    by side, (batch, tokens, (H + 2 H_kv) D); its cache is (batch, H_kv, past, D).
    """
    values = (*graph.input, *graph.output, *graph.value_info)
    shapes = {value.name: list(value.type.tensor_type.shape.dim) for value in values}
    return dict(_found(graph, shapes))


def _found(graph: onnx.GraphProto, shapes: dict[str, list[Any]]) -> Iterator[tuple[str, int]]:
    for node in graph.node:
        if (node.domain, node.op_type) != _ATTENTION or len(node.input) < 4:
            continue
        heads = {a.name: a.i for a in node.attribute if a.type == onnx.AttributeProto.INT}
        query, key, _, past = node.input[:4]
        kv = heads.get("kv_num_heads", 0)
        share = kv if key else heads.get("num_heads", 0) + 2 * kv
        last, cached = shapes.get(key or query, []), shapes.get(past, [])
        width = last[-1].dim_value if last else 0
        if cached and cached[-1].dim_param and share and width:
            yield cached[-1].dim_param, width // share
