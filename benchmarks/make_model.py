"""ONNX models of Llama-2-7B's shape in fp16, and masks for them, written as a stream.

python benchmarks/make_model.py out/ --gigabytes 13.5 --tile band:128 --dense 0.5

The graph is the whole model, as an exporter with plain operators writes it: input ids to
logits, with rotary embeddings, causal attention and RMS norms. Other sizes have other numbers
of blocks; 13.5 GB has Llama's 32. Weights are random: every weight is one random row repeated
with a shift, so that 30 GB take no minutes of random numbers. Digests are of the real bytes.
"""

import argparse
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from patch_compile.io.masks_file import save_masks
from patch_compile.io.save_model import save_model
from patch_compile.tiles.geometry import Geometry, TileGrid
from patch_compile.tiles.masks import Masks
from patch_compile.tiles.pattern import pack_keep
from patch_compile.tiles.weight_mask import WeightMask

# Llama 2 7B (arXiv 2307.09288): hidden and inner size, heads, vocabulary.
_HIDDEN, _INNER, _HEADS, _VOCABULARY = 4096, 11008, 32, 32000
_HEAD = _HIDDEN // _HEADS
_EPSILON, _THETA = 1e-5, 10000.0
_BLOCK_BYTES = 2 * (4 * _HIDDEN * _HIDDEN + 3 * _HIDDEN * _INNER)
_FP16 = ir.DataType.FLOAT16
_SPREAD = 0.02

# A weight of torch's shape (N, K) by the last steps of its name.
_LINEARS = {
    "self_attn.q_proj": (_HIDDEN, _HIDDEN),
    "self_attn.k_proj": (_HIDDEN, _HIDDEN),
    "self_attn.v_proj": (_HIDDEN, _HIDDEN),
    "self_attn.o_proj": (_HIDDEN, _HIDDEN),
    "mlp.gate_proj": (_INNER, _HIDDEN),
    "mlp.up_proj": (_INNER, _HIDDEN),
    "mlp.down_proj": (_HIDDEN, _INNER),
}


class RandomTensor(ir.LazyTensor):
    """An fp16 tensor whose rows are windows of one random row; made in blocks."""

    __slots__ = ("_seed",)

    def __init__(self, name: str, shape: tuple[int, int], seed: int) -> None:
        """Describes the tensor; the seed tells it from others."""
        super().__init__(self._whole, _FP16, ir.Shape(shape), name=name)
        self._seed = seed

    def blocks(self) -> Iterator[NDArray[Any]]:
        """Yields consecutive rows."""
        height, width = (int(size) for size in self.shape.numpy())
        rng = np.random.default_rng(self._seed)
        row = (_SPREAD * rng.standard_normal(width + height, np.float32)).astype(np.float16)
        windows = np.lib.stride_tricks.sliding_window_view(row, width)
        for start in range(0, height, 128):
            yield np.ascontiguousarray(windows[start : min(start + 128, height)])

    def _whole(self) -> ir.TensorProtocol:
        return ir.Tensor(np.concatenate(list(self.blocks())), name=self.name)

    def tofile(self, file: BinaryIO) -> None:
        """Writes the bytes block by block."""
        for block in self.blocks():
            file.write(block.data)

    def sha256(self) -> str:
        """The digest of the bytes."""
        total = hashlib.sha256()
        for block in self.blocks():
            total.update(block.data)
        return total.hexdigest()


class _Graph:
    """Collects nodes and initializers of the model."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []
        self.initializers: list[ir.Value] = []

    def op(self, kind: str, *inputs: ir.Value, name: str = "", **attributes: Any) -> ir.Value:
        node = ir.node(kind, inputs, attributes or None, name=name or None)
        return self._added(node)[0]

    def halves(self, value: ir.Value) -> Sequence[ir.Value]:
        node = ir.node("Split", [value], {"axis": -1, "num_outputs": 2}, num_outputs=2)
        return self._added(node)

    def _added(self, node: ir.Node) -> Sequence[ir.Value]:
        self.nodes.append(node)
        for index, value in enumerate(node.outputs):
            value.name = f"v{len(self.nodes)}_{index}"
        return node.outputs

    def constant(self, tensor: ir.TensorProtocol) -> ir.Value:
        value = ir.Value(
            name=tensor.name,
            shape=ir.Shape([int(size) for size in tensor.shape.numpy()]),
            type=ir.TensorType(tensor.dtype),
        )
        value.const_value = tensor
        self.initializers.append(value)
        return value

    def numbers(self, values: Any, kind: Any = np.int64) -> ir.Value:
        return self.constant(
            ir.tensor(np.array(values, kind), name=f"c{len(self.initializers)}")
        )

    def weight(self, name: str, shape: tuple[int, int]) -> ir.Value:
        return self.constant(RandomTensor(name, shape, len(self.initializers)))


@dataclass(frozen=True)
class _Llama:
    """Writes the parts of the model into a graph."""

    graph: _Graph
    cos: ir.Value
    sin: ir.Value
    causal: ir.Value

    def block(self, x: ir.Value, prefix: str) -> ir.Value:
        op = self.graph.op
        attended = self._attention(self.norm(x, f"{prefix}.input_layernorm"), prefix)
        x = op("Add", x, attended)
        y = self.norm(x, f"{prefix}.post_attention_layernorm")
        gate = self.linear(y, f"{prefix}.mlp.gate_proj")
        up = self.linear(y, f"{prefix}.mlp.up_proj")
        inner = op("Mul", op("Mul", gate, op("Sigmoid", gate)), up)
        return op("Add", x, self.linear(inner, f"{prefix}.mlp.down_proj"))

    def norm(self, x: ir.Value, name: str) -> ir.Value:
        op, numbers = self.graph.op, self.graph.numbers
        wide = op("Cast", x, to=ir.DataType.FLOAT.value)
        mean = op("ReduceMean", op("Mul", wide, wide), numbers([-1]))
        scale = op("Sqrt", op("Add", mean, numbers(_EPSILON, np.float32)))
        narrow = op("Cast", op("Div", wide, scale), to=_FP16.value)
        gain = ir.tensor(np.ones(_HIDDEN, np.float16), name=f"{name}.weight")
        return op("Mul", narrow, self.graph.constant(gain))

    def linear(self, x: ir.Value, name: str) -> ir.Value:
        n, k = _LINEARS[".".join(name.split(".")[-2:])]
        return self.graph.op(
            "MatMul", x, self.graph.weight(f"{name}.weight", (k, n)), name=name
        )

    def _attention(self, x: ir.Value, prefix: str) -> ir.Value:
        op, numbers = self.graph.op, self.graph.numbers
        q, k, v = (self._heads(x, f"{prefix}.self_attn.{part}_proj") for part in "qkv")
        turned = op("Transpose", self._rotated(k), perm=[0, 1, 3, 2])
        scores = op("MatMul", self._rotated(q), turned)
        scores = op("Mul", scores, numbers(_HEAD**-0.5, np.float16))
        shares = op("Softmax", op("Add", scores, self.causal), axis=-1)
        mixed = op("Transpose", op("MatMul", shares, v), perm=[0, 2, 1, 3])
        flat = op("Reshape", mixed, numbers([0, 0, _HIDDEN]))
        return self.linear(flat, f"{prefix}.self_attn.o_proj")

    def _heads(self, x: ir.Value, name: str) -> ir.Value:
        split = self.graph.numbers([0, 0, _HEADS, _HEAD])
        parted = self.graph.op("Reshape", self.linear(x, name), split)
        return self.graph.op("Transpose", parted, perm=[0, 2, 1, 3])

    def _rotated(self, x: ir.Value) -> ir.Value:
        op = self.graph.op
        first, second = self.graph.halves(x)
        swapped = op("Concat", op("Neg", second), first, axis=-1)
        return op("Add", op("Mul", x, self.cos), op("Mul", swapped, self.sin))


def write_model(folder: Path, gigabytes: float, tile: str, dense: float) -> tuple[Path, Path]:
    """Writes model.onnx (fp16) with about that many GB of weights, and masks.json.

    Args:
        folder: made if missing.
        gigabytes: 0.5 or more; below 1 the vocabulary is an eighth of Llama's.
        tile: geometry of the masks.
        dense: share of dense tiles.

    Returns:
        The two paths.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = _model(gigabytes * 1e9)
    save_model(model, folder / "model.onnx")
    weights = [
        value.const_value
        for value in model.graph.initializers.values()
        if isinstance(value.const_value, RandomTensor) and "_proj" in (value.name or "")
    ]
    made = [_mask(seed, weight, tile, dense) for seed, weight in enumerate(weights)]
    masks = folder / "masks.json"
    save_masks(Masks({mask.name: mask for mask in made}, {"method": "random"}), masks)
    return folder / "model.onnx", masks


def _model(size: float) -> ir.Model:
    vocabulary = _VOCABULARY if size >= 1e9 else _VOCABULARY // 8
    blocks = max(1, round((size - 4 * vocabulary * _HIDDEN) / _BLOCK_BYTES))
    graph = _Graph()
    ids = ir.val("input_ids", ir.DataType.INT64, ["batch", "sequence"])
    x = graph.op("Gather", graph.weight("embed_tokens.weight", (vocabulary, _HIDDEN)), ids)
    llama = _Llama(graph, *_angles(graph, ids))
    for index in range(blocks):
        x = llama.block(x, f"model.layers.{index}")
    head = graph.weight("lm_head.weight", (_HIDDEN, vocabulary))
    logits = graph.op("MatMul", llama.norm(x, "model.norm"), head, name="lm_head")
    logits.name = "logits"
    logits.type = ir.TensorType(_FP16)
    logits.shape = ir.Shape(["batch", "sequence", vocabulary])
    made = ir.Graph(
        [ids],
        [logits],
        nodes=graph.nodes,
        initializers=graph.initializers,
        opset_imports={"": 20},
        name="llama",
    )
    return ir.Model(made, ir_version=10)


def _angles(graph: _Graph, ids: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Cosines and sines, (sequence, head), and the causal mask, (sequence, sequence)."""
    op, numbers = graph.op, graph.numbers
    length = op("Gather", op("Shape", ids), numbers(1))
    at = op("Range", numbers(0), length, numbers(1))
    row, column = op("Unsqueeze", at, numbers([1])), op("Unsqueeze", at, numbers([0]))
    rates = _THETA ** (-np.arange(0, _HEAD, 2) / _HEAD)
    wide = op("Cast", row, to=ir.DataType.FLOAT.value)
    angles = op("Mul", wide, numbers(np.concatenate([rates, rates]), np.float32))
    cos, sin = (op("Cast", op(kind, angles), to=_FP16.value) for kind in ("Cos", "Sin"))
    zero, least = numbers(0, np.float16), numbers(np.finfo(np.float16).min, np.float16)
    return cos, sin, op("Where", op("LessOrEqual", column, row), zero, least)


def _mask(seed: int, weight: RandomTensor, tile: str, dense: float) -> WeightMask:
    k, n = (int(size) for size in weight.shape.numpy())
    grid = Geometry.parse(tile).grid((n, k))
    chosen = np.random.default_rng(seed).random(grid.tiles) < dense
    return WeightMask(
        weight.name or "",
        grid,
        chosen,
        partial(_bits, seed, grid, chosen),
        digests={"float16.T": weight.sha256()},
        geometry=tile,
    )


def _bits(seed: int, grid: TileGrid, dense: NDArray[np.bool_]) -> NDArray[np.uint8]:
    keep = pack_keep(grid.expand(dense))
    # Six bytes with two bits set in each half: the 2:4 patterns, two groups a byte.
    patterns = np.array([0x33, 0x55, 0x66, 0x99, 0xAA, 0xCC], np.uint8)
    bits: NDArray[np.uint8] = patterns[np.random.default_rng(seed).integers(0, 6, keep.shape)]
    return bits | keep


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gigabytes", type=float, default=13.5)
    parser.add_argument("--tile", default="band:128")
    parser.add_argument("--dense", type=float, default=0.5)
    options = parser.parse_args()
    print(*write_model(options.folder, options.gigabytes, options.tile, options.dense))
