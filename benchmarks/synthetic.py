"""Llama-shaped ONNX models of any size, and masks for them, written as a stream.

python benchmarks/synthetic.py out/ --gigabytes 4 --tile 128x128 --dense 0.5
"""

import argparse
import logging
from pathlib import Path

import numpy as np
import onnx_ir as ir

from patch_compile.io.digests import digest
from patch_compile.io.masks_file import save_masks
from patch_compile.io.onnx_model import save_model
from patch_compile.tiles.geometry import Geometry
from patch_compile.tiles.masks import Masks
from patch_compile.tiles.pattern import pack_keep
from patch_compile.tiles.weight_mask import WeightMask

logger = logging.getLogger(__name__)

# One Llama-2-7B block: q, k, v, o, gate, up (N, K), then down.
_HIDDEN, _INNER = 4096, 11008
_SHAPES = [(_HIDDEN, _HIDDEN)] * 4 + [(_INNER, _HIDDEN)] * 2 + [(_HIDDEN, _INNER)]


def write_model(folder: Path, gigabytes: float, tile: str, dense: float) -> tuple[Path, Path]:
    """Writes model.onnx (fp16) with about that many GB of weights, and masks.json.

    Every weight is one random row repeated with a shift, so that 30 GB take no minutes of
    random numbers; digests are of the real bytes. Returns the two paths.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shapes = _shapes(gigabytes * 1e9)
    names = [f"model.layers.{i // 7}.linear_{i % 7}.weight" for i in range(len(shapes))]
    nodes, values, inputs = [], [], {}
    for index, (name, (n, k)) in enumerate(zip(names, shapes, strict=True)):
        x = inputs.setdefault(k, ir.val(f"x{k}", ir.DataType.FLOAT16, ["tokens", k]))
        tensor = _lazy(index, n, k, name)
        value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype))
        value.const_value = tensor
        node = ir.Node("", "MatMul", [x, value], name=f"node_{index}")
        node.outputs[0].name = f"y{index}"
        node.outputs[0].shape = ir.Shape(["tokens", n])
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT16)
        nodes.append(node)
        values.append(value)
    graph = ir.Graph(
        list(inputs.values()),
        [node.outputs[0] for node in nodes],
        nodes=nodes,
        initializers=values,
        opset_imports={"": 20},
        name="synthetic",
    )
    model = folder / "model.onnx"
    save_model(ir.Model(graph, ir_version=10), model)
    masks = folder / "masks.json"
    made = [
        _mask(i, n, s, tile, dense) for i, (n, s) in enumerate(zip(names, shapes, strict=True))
    ]
    save_masks(Masks({mask.name: mask for mask in made}, {"method": "random"}), masks)
    return model, masks


def _shapes(size: float) -> list[tuple[int, int]]:
    shapes: list[tuple[int, int]] = []
    while sum(2 * n * k for n, k in shapes) < size:
        shapes.append(_SHAPES[len(shapes) % len(_SHAPES)])
    return shapes


def _weight(index: int, n: int, k: int) -> np.ndarray:
    row = np.random.default_rng(index).standard_normal(n + k, np.float32).astype(np.float16)
    return np.lib.stride_tricks.sliding_window_view(row, n)[:k]


def _lazy(index: int, n: int, k: int, name: str) -> ir.LazyTensor:
    def make() -> ir.TensorProtocol:
        return ir.Tensor(np.ascontiguousarray(_weight(index, n, k)))

    return ir.LazyTensor(make, ir.DataType.FLOAT16, ir.Shape((k, n)), name=name)


def _mask(
    index: int, name: str, shape: tuple[int, int], tile: str, dense: float
) -> WeightMask:
    rng = np.random.default_rng(index)
    grid = Geometry.parse(tile).grid(shape)
    chosen = rng.random(grid.tiles) < dense
    # Six bytes with two bits set in each half: the 2:4 patterns, two groups a byte.
    patterns = np.array([0x33, 0x55, 0x66, 0x99, 0xAA, 0xCC], np.uint8)
    bits = patterns[rng.integers(0, 6, (shape[0], -(-shape[1] // 8)))]
    bits |= pack_keep(grid.expand(chosen))
    known = {"float16.T": digest(_weight(index, *shape))}
    return WeightMask(name, grid, chosen, lambda: bits, digests=known, geometry=tile)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--tile", default="band:128")
    parser.add_argument("--dense", type=float, default=0.5)
    options = parser.parse_args()
    print(*write_model(options.folder, options.gigabytes, options.tile, options.dense))
