"""A decoder layer as onnxruntime-genai's model builder writes it, made with onnx.helper.

The facts followed: opset 22 and com.microsoft; q, k and v in one weight (K, N_q + N_k + N_v)
named `model.layers.0.attn.qkv_proj.MatMul.weight`; GroupQueryAttention with its rotation
tables, SkipSimplifiedLayerNormalization around the two residual sums, a cache in and out
whose heads have the symbol `kv_cache_dim` for a size.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

HIDDEN, HEADS, KV_HEADS, HEAD, FFN, VOCABULARY, LONGEST = 64, 4, 2, 16, 96, 40, 32

# Rows of q, k and v in the fused weight.
FUSED = {"q_proj": HEADS * HEAD, "k_proj": KV_HEADS * HEAD, "v_proj": KV_HEADS * HEAD}
LAYER = "model.layers.0"

_CACHE: list[str | int] = ["batch", KV_HEADS, "past", "kv_cache_dim"]


def genai_model(path: Path, rng: np.random.Generator) -> dict[str, NDArray[np.float32]]:
    """Writes the model; returns the weights (N, K) of its linears by parameter name."""
    weights = _weights(rng)
    nodes = _nodes()
    attention = next(node for node in nodes if node.op_type == "GroupQueryAttention")
    qkv: list[str | int] = ["batch", "length", sum(FUSED.values())]
    graph = helper.make_graph(
        nodes,
        "main_graph",
        _inputs(),
        _outputs(),
        _tensors(weights, rng),
        value_info=[helper.make_tensor_value_info(attention.input[0], TensorProto.FLOAT, qkv)],
    )
    opsets = [helper.make_opsetid("", 22), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.save(model, path)
    return weights


def feeds(rng: np.random.Generator, batch: int = 2, length: int = 5) -> dict[str, Any]:
    """Inputs of a first pass: the cache is empty."""
    empty = np.zeros((batch, KV_HEADS, 0, HEAD), np.float32)
    return {
        "input_ids": rng.integers(0, VOCABULARY, (batch, length)),
        "attention_mask": np.ones((batch, length), np.int64),
        "past_key_values.0.key": empty,
        "past_key_values.0.value": empty,
    }


def _weights(rng: np.random.Generator) -> dict[str, NDArray[np.float32]]:
    shapes = {f"self_attn.{part}": (rows, HIDDEN) for part, rows in FUSED.items()}
    shapes["self_attn.o_proj"] = (HIDDEN, HEADS * HEAD)
    shapes |= {"mlp.gate_proj": (FFN, HIDDEN), "mlp.up_proj": (FFN, HIDDEN)}
    shapes["mlp.down_proj"] = (HIDDEN, FFN)
    return {
        f"{LAYER}.{name}.weight": (rng.standard_normal(shape) / 8).astype(np.float32)
        for name, shape in shapes.items()
    }


def _tensors(
    weights: dict[str, NDArray[np.float32]], rng: np.random.Generator
) -> list[onnx.TensorProto]:
    qkv = np.concatenate([weights[f"{LAYER}.self_attn.{part}.weight"] for part in FUSED])
    angles = np.outer(np.arange(LONGEST), 10000.0 ** (-np.arange(0, HEAD, 2) / HEAD))
    arrays = {
        "model.embed_tokens.weight": rng.standard_normal((VOCABULARY, HIDDEN)),
        f"{LAYER}.attn.qkv_proj.MatMul.weight": qkv.T,
        f"{LAYER}.attn.o_proj.MatMul.weight": weights[f"{LAYER}.self_attn.o_proj.weight"].T,
        **{
            f"{LAYER}.mlp.{part}.MatMul.weight": weights[f"{LAYER}.mlp.{part}.weight"].T
            for part in ("gate_proj", "up_proj", "down_proj")
        },
        "lm_head.MatMul.weight": rng.standard_normal((HIDDEN, VOCABULARY)),
        **{f"norm_{i}.weight": np.ones(HIDDEN) for i in range(3)},
        "cos_cache": np.cos(angles),
        "sin_cache": np.sin(angles),
    }
    tensors = [
        numpy_helper.from_array(np.ascontiguousarray(array, np.float32), name)
        for name, array in arrays.items()
    ]
    whole = {"one": np.array([1]), "one_scalar": np.array(1)}
    return tensors + [numpy_helper.from_array(array, name) for name, array in whole.items()]


def _inputs() -> list[onnx.ValueInfoProto]:
    info = helper.make_tensor_value_info
    return [
        info("input_ids", TensorProto.INT64, ["batch", "length"]),
        info("attention_mask", TensorProto.INT64, ["batch", "total"]),
        info("past_key_values.0.key", TensorProto.FLOAT, _CACHE),
        info("past_key_values.0.value", TensorProto.FLOAT, _CACHE),
    ]


def _outputs() -> list[onnx.ValueInfoProto]:
    info = helper.make_tensor_value_info
    cache: list[str | int] = ["batch", KV_HEADS, "total", "kv_cache_dim"]
    return [
        info("logits", TensorProto.FLOAT, ["batch", "length", VOCABULARY]),
        info("present.0.key", TensorProto.FLOAT, cache),
        info("present.0.value", TensorProto.FLOAT, cache),
    ]


def _product(x: str, place: str) -> onnx.NodeProto:
    name = f"/{place.replace('.', '/').replace('layers/', 'layers.')}/MatMul"
    return helper.make_node(
        "MatMul", [x, f"{place}.MatMul.weight"], [f"{name}/output_0"], name=name
    )


def _nodes() -> list[onnx.NodeProto]:
    head = helper.make_node("MatMul", ["normed_2", "lm_head.MatMul.weight"], ["logits"])
    return [*_lengths(), *_embedding(), *_attention(), *_mlp(), head]


def _lengths() -> list[onnx.NodeProto]:
    node = helper.make_node
    return [
        node("ReduceSum", ["attention_mask", "one"], ["lengths"], keepdims=0),
        node("Sub", ["lengths", "one_scalar"], ["last"]),
        node("Cast", ["last"], ["seqlens_k"], to=TensorProto.INT32),
        node("Shape", ["attention_mask"], ["mask_shape"]),
        node("Gather", ["mask_shape", "one_scalar"], ["total_long"], axis=0),
        node("Cast", ["total_long"], ["total"], to=TensorProto.INT32),
    ]


def _embedding() -> list[onnx.NodeProto]:
    norm = helper.make_node(
        "SimplifiedLayerNormalization",
        ["embedded", "norm_0.weight"],
        ["normed_0"],
        epsilon=1e-5,
        axis=-1,
        stash_type=1,
    )
    tokens = ["model.embed_tokens.weight", "input_ids"]
    return [helper.make_node("Gather", tokens, ["embedded"]), norm]


def _attention() -> list[onnx.NodeProto]:
    qkv = _product("normed_0", f"{LAYER}.attn.qkv_proj")
    out = _product("attended", f"{LAYER}.attn.o_proj")
    past = ["past_key_values.0.key", "past_key_values.0.value"]
    attention = helper.make_node(
        "GroupQueryAttention",
        [qkv.output[0], "", "", *past, "seqlens_k", "total", "cos_cache", "sin_cache"],
        ["attended", "present.0.key", "present.0.value"],
        domain="com.microsoft",
        num_heads=HEADS,
        kv_num_heads=KV_HEADS,
        do_rotary=1,
    )
    return [qkv, attention, out, _sum("embedded", out, 1, "residual")]


def _mlp() -> list[onnx.NodeProto]:
    node = helper.make_node
    gate, up = (_product("normed_1", f"{LAYER}.mlp.{part}_proj") for part in ("gate", "up"))
    down = _product("gated", f"{LAYER}.mlp.down_proj")
    return [
        gate,
        up,
        node("Sigmoid", gate.output, ["sigmoid"]),
        node("Mul", [gate.output[0], "sigmoid"], ["silu"]),
        node("Mul", ["silu", up.output[0]], ["gated"]),
        down,
        _sum("residual", down, 2),
    ]


def _sum(x: str, y: onnx.NodeProto, norm: int, *kept: str) -> onnx.NodeProto:
    """Normalises x + y; gives the sum itself too, where it is kept."""
    return helper.make_node(
        "SkipSimplifiedLayerNormalization",
        [x, y.output[0], f"norm_{norm}.weight"],
        [f"normed_{norm}", *(["", "", *kept] if kept else [])],
        domain="com.microsoft",
        epsilon=1e-5,
    )
