"""A figure a lowering: small models, compiled by the product, and what came of them.

Nothing here is drawn by hand: tiles are the mask's, pieces the plan's, nodes the graph's.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from patch_compile.compiler import compile_model
from patch_compile.passes.sites import ROLE
from patch_compile.recipe import CompileRecipe
from patch_compile.tiles.geometry import Geometry
from patch_compile.tiles.masks import Masks
from patch_compile.tiles.pattern import top2_of_4
from patch_compile.tiles.plan import Piece, WeightPlan
from patch_compile.tiles.weight_mask import WeightMask, from_keep
from scripts.docs.drawing import Box, Rectangle, draw_graph, draw_weight

__all__ = ["CASES", "Case", "figure"]

_ROLES = {"dense": "dense", "sparse24": "2:4"}
# The side of a tile, and a small model's features.
_TILE = 16


@dataclass(frozen=True)
class Case:
    """One lowering at work.

    Attributes:
        maps: of each weight its tiles, `#` for 2:4 and `.` for dense, a word a row of tiles.
        build: makes the model of weights (N, K).
        lowering: what is drawn, where the case has another name.
    """

    maps: Mapping[str, str]
    build: Callable[[Mapping[str, NDArray[np.float32]]], ir.Model]
    lowering: str | None = None


@cache
def figure(name: str) -> str:
    """Returns the HTML of a case's figure: tiles, pieces, the graph before and after."""
    case = CASES[name]
    lowering = case.lowering or name
    masks = {weight: _mask(weight, tiles) for weight, tiles in case.maps.items()}
    weights = {weight: np.ones(m.shape, np.float32) for weight, m in masks.items()}
    before = draw_graph(_boxes(case.build(weights)), f"{name}: the graph before")
    recipe: Any = CompileRecipe(
        lowering=lowering,  # type: ignore[arg-type]
        min_gain=0.0,
        check_digests=False,
    )
    compiled = compile_model(case.build(weights), Masks(masks), recipe)
    taken = {weight.group or weight.lowering for weight in compiled.report.weights}
    assert taken == {lowering}, f"{name} | was drawn as {taken}"
    after = draw_graph(_boxes(compiled.model), f"{name}: the graph after")
    pictures = "".join(
        _weight(plan, masks[plan.masks[0]], alone=len(masks) == 1)
        for plan in compiled.plan.weights
    )
    graphs = _picture("before", before) + _picture("after", after)
    return f'<div class="pc-figure">{pictures}<div class="pc-graphs">{graphs}</div></div>'


def _picture(caption: str, svg: str) -> str:
    return f"<figure>{svg}<figcaption>{caption}</figcaption></figure>"


def _weight(plan: WeightPlan, mask: WeightMask, *, alone: bool) -> str:
    name = "W" if alone else plan.weight.partition(".")[0]
    n, k = plan.shape
    tiles = draw_weight(plan.shape, list(_tiles(mask)), f"tiles of {name}")
    parts = [_picture(f"{name}: tiles, {n} x {k}", tiles)]
    for index, piece in enumerate(plan.pieces):
        drawn = draw_weight(plan.shape, list(_blocks(piece)), f"piece {index} of {name}")
        rows, columns = piece.shape
        role = _ROLES[piece.role]
        parts.append(_picture(f"{name}: {role}, {rows} x {columns}", drawn))
    return f'<div class="pc-weights">{"".join(parts)}</div>'


def _tiles(mask: WeightMask) -> Iterator[Rectangle]:
    rows, columns = mask.grid.rows, mask.grid.columns
    for row, column in np.ndindex(mask.dense.shape):
        yield Rectangle(
            (rows[row], rows[row + 1]),
            (columns[column], columns[column + 1]),
            "dense" if mask.dense[row, column] else "sparse24",
        )


def _blocks(piece: Piece) -> Iterator[Rectangle]:
    for rows, columns in product(piece.rows, piece.columns):
        yield Rectangle(rows, columns, piece.role)


def _mask(name: str, tiles: str) -> WeightMask:
    dense = np.array([[tile == "." for tile in row] for row in tiles.split()])
    shape = (dense.shape[0] * _TILE, dense.shape[1] * _TILE)
    grid = Geometry.parse(f"{_TILE}x{_TILE}").grid(shape)
    keep = top2_of_4(np.random.default_rng(0).random(shape)) | grid.expand(dense)
    return from_keep(name, grid, dense, keep, digests=None, geometry=f"{_TILE}x{_TILE}")


def _boxes(model: ir.Model) -> list[Box]:
    """The graph's nodes, without what is constant."""
    boxes = [Box(str(value.name), (str(value.name),), "end") for value in model.graph.inputs]
    made: dict[ir.Value | None, str] = {value: str(value.name) for value in model.graph.inputs}
    for index, node in enumerate(model.graph):
        name = f"{index} {node.op_type}"
        reads = tuple(dict.fromkeys(made[value] for value in node.inputs if value in made))
        made.update(dict.fromkeys(node.outputs, name))
        boxes.append(Box(name, *_words(node), reads))
    boxes += [
        Box(f"end {value.name}", (str(value.name),), "end", (made[value],))
        for value in model.graph.outputs
    ]
    return boxes


def _words(node: ir.Node) -> tuple[tuple[str, ...], str]:
    if node.op_type != "MatMul":
        return (node.op_type,), "op"
    weight = node.inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    k, n = weight.const_value.shape.numpy()
    role = node.metadata_props.get(ROLE)
    said = f"{n} x {k}" if role is None else f"{_ROLES[role]}, {n} x {k}"
    return ("MatMul", said), role or "plain"


def _float(name: str, width: int) -> ir.Value:
    return ir.Value(
        name=name,
        shape=ir.Shape(["batch", "sequence", width]),
        type=ir.TensorType(ir.DataType.FLOAT),
    )


class _Builder:
    """Writes the nodes of a small model."""

    def __init__(self, weights: Mapping[str, NDArray[np.float32]]) -> None:
        self.weights = weights
        self.nodes: list[ir.Node] = []
        self.constants: list[ir.Value] = []

    def matmul(self, x: ir.Value, name: str, out: str) -> ir.Value:
        weight = self.weights[name]
        tensor = ir.tensor(np.ascontiguousarray(weight.T), name=name)
        constant = ir.Value(
            name=name,
            const_value=tensor,
            shape=ir.Shape(weight.T.shape),
            type=ir.TensorType(tensor.dtype),
        )
        self.constants.append(constant)
        return self.node("MatMul", [x, constant], out, weight.shape[0])

    def node(
        self, kind: str, inputs: Sequence[ir.Value], out: str, width: int, **counts: int
    ) -> ir.Value:
        value = _float(out, width)
        made = ir.node(kind, inputs, counts, outputs=[value], name=f"/{out}")
        self.nodes.append(made)
        return value

    def model(self, x: ir.Value, outputs: Sequence[ir.Value]) -> ir.Model:
        graph = ir.Graph(
            [x],
            outputs,
            nodes=self.nodes,
            initializers=self.constants,
            # The first to have an Attention.
            opset_imports={"": 23},
            name="small",
        )
        return ir.Model(graph, ir_version=10)


def _linear(weights: Mapping[str, NDArray[np.float32]]) -> ir.Model:
    write = _Builder(weights)
    x = _float("X", weights["w.weight"].shape[1])
    return write.model(x, [write.matmul(x, "w.weight", "Y")])


def _mlp(weights: Mapping[str, NDArray[np.float32]]) -> ir.Model:
    write = _Builder(weights)
    inner, k = weights["G.weight"].shape
    x = _float("X", k)
    gate, up = write.matmul(x, "G.weight", "g"), write.matmul(x, "U.weight", "u")
    soft = write.node("Sigmoid", [gate], "s", inner)
    silu = write.node("Mul", [gate, soft], "a", inner)
    gated = write.node("Mul", [silu, up], "i", inner)
    return write.model(x, [write.matmul(gated, "D.weight", "Y")])


def _heads(weights: Mapping[str, NDArray[np.float32]]) -> ir.Model:
    write = _Builder(weights)
    x = _float("X", weights["q.weight"].shape[1])
    outputs = [write.matmul(x, name, name[0].upper()) for name in weights]
    return write.model(x, outputs)


def _attention(weights: Mapping[str, NDArray[np.float32]]) -> ir.Model:
    write = _Builder(weights)
    inner, k = weights["q.weight"].shape
    x = _float("X", k)
    values = [write.matmul(x, f"{name}.weight", name) for name in "qkv"]
    heads = inner // _TILE
    made = write.node("Attention", values, "a", inner, q_num_heads=heads, kv_num_heads=heads)
    return write.model(x, [write.matmul(made, "o.weight", "Y")])


def _one(tiles: str) -> Case:
    return Case({"w.weight": tiles}, _linear)


CASES: Mapping[str, Case] = {
    "dense": _one("..#... .#..#. ...... #....#"),
    "whole": _one("###### ###### ###### ######"),
    "columns": _one("###### ...... ###### ......"),
    "reduction": _one("#.##.# #.##.# #.##.# #.##.#"),
    "cover": _one("...... ###.## ###.## ###.##"),
    "residual": _one("##.### ##.### ##.### ##.###"),
    "branches": Case(
        {
            "G.weight": ".... #### #### ....",
            "U.weight": ".... #### #### ....",
            "D.weight": ".##. .##. .##. .##.",
        },
        _mlp,
    ),
    "branches-attention": Case(
        {
            **dict.fromkeys(("q.weight", "k.weight", "v.weight"), ".... #### #### ...."),
            "o.weight": ".##. .##. .##. .##.",
        },
        _attention,
        "branches",
    ),
    "sink-order": Case(
        {
            "G.weight": ".... #### #### ....",
            "U.weight": ".... #### #### ....",
            "D.weight": "#### #### #### ####",
        },
        _mlp,
    ),
    "merge": Case(
        {
            "q.weight": ".... #### #### ####",
            "k.weight": "#### ####",
            "v.weight": ".... ....",
        },
        _heads,
    ),
}
