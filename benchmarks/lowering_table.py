"""How much of an ideal hybrid kernel's gain each lowering keeps, by GPU and tokens.

python benchmarks/lowering_table.py

Predicted from measured GEMM latencies, for the linear layers of whole models, with q, k, v
and gate, up merged in the dense baseline and in every row. Tile maps are drawn at random; a
cut that does not pay stays dense. `branches`: an MLP cut at one index in blocks of 128, and
whole weights of attention, an average over layers. `ideal`: 1 / ((1 - f) + f / s), f the
share of the area in 2:4 tiles, s the gain of all of it; whole layers of 2:4 reach it. At the
end: the published end-to-end gains of PATCH (arXiv 2509.23410), whose kernel does not need
whole pieces, and the s that its kernel would have for them, if dense linear layers take what
is predicted.
"""

from typing import Any

import numpy as np
from measuring import write_result

from patch_compile.recipe import CompileRecipe
from patch_compile.targets.target import Target, parse
from patch_compile.tiles.blocks import Block, Structure
from patch_compile.tiles.geometry import Geometry
from patch_compile.tiles.groups import plan_weights
from patch_compile.tiles.operations import of_plan, price
from patch_compile.tiles.planner import plan_weight
from patch_compile.tiles.time_cost import TimeCost, dense_us
from patch_compile.tiles.weight_mask import WeightMask

Shape = tuple[int, int]

# From the models' configs: hidden, intermediate, q with k and v, layers.
_MODELS = {
    "LLaMA-2-7B": (4096, 11008, 12288, 32),
    "Llama-3.2-1B": (2048, 8192, 3072, 16),
    "Qwen2.5-7B": (3584, 18944, 4608, 28),
}
_TARGETS = (
    *("a100-bf16", "h100-bf16", "h100-fp8", "b200-bf16", "b200-fp8"),
    *("rtx4090-bf16", "rtx4090-fp8", "rtx5080-bf16", "gb10-bf16", "a6000-fp16"),
)
_TOKENS = (16, 2048)
_SPARSITIES = (0.45, 0.35, 0.25)
_BLOCK = 128
_GEOMETRIES = {"free tiles": "128x128", "bands": "band:128", "columns": "column:128"}

# Published end-to-end gains at 25, 35, 45 % zeros, batch 16, 128 tokens in and out, and
# dense tokens a second (arXiv 2509.23410).
_PATCH = {
    "a100-fp16": (1876.24, (1.07, 1.11, 1.16)),
    "a6000-fp16": (1023.80, (1.18, 1.27, 1.38)),
}


def main() -> None:
    print("speed-up over dense, predicted from measured GEMM latencies; * is an estimate")
    data: dict[str, Any] = {"rows": [], "patch": {}}
    for model, (hidden, inner, qkv, _) in _MODELS.items():
        shapes = ((qkv, hidden), (hidden, hidden), (2 * inner, hidden), (hidden, inner))
        for name in _TARGETS:
            for tokens in _TOKENS:
                row = _row(parse(name), tokens, shapes)
                _print(model, parse(name), tokens, row)
                data["rows"].append({"model": model, "target": name, "tokens": tokens, **row})
    for name in _PATCH:
        data["patch"][name] = _patch(parse(name))
    write_result("lowering_table", data)


def _row(target: Target, tokens: int, shapes: tuple[Shape, ...]) -> dict[str, Any]:
    cost = TimeCost(target, ((tokens, 1.0),))
    dense = dense_us(target, tokens, shapes)
    sparse = [cost.product(n, k, sparse24=True) for n, k in shapes]
    plain = [cost.product(n, k, sparse24=False) for n, k in shapes]
    full = dense / sum(sparse)
    row: dict[str, Any] = {
        "dense_us_a_layer": dense,
        "full 2:4": full,
        "FFN 2:4": dense / (sum(plain[:2]) + sum(sparse[2:])),
    }
    for sparsity in _SPARSITIES:
        share = 2 * sparsity
        row[f"ideal {sparsity:.0%}"] = 1 / ((1 - share) + share / full)
        for label, tile in _GEOMETRIES.items():
            row[f"{label} {sparsity:.0%}"] = dense / _planned(cost, shapes, tile, share)
        qkv, out = (
            (1 - share) * slow + share * min(slow, fast)
            for slow, fast in zip(plain[:2], sparse[:2], strict=True)
        )
        row[f"branches {sparsity:.0%}"] = dense / (qkv + out + _branches(cost, shapes, share))
    return row


def _branches(cost: TimeCost, shapes: tuple[Shape, ...], share: float) -> float:
    """The price of gate, up and down, tied, or of the dense ones where that is less."""
    (both, hidden), (_, inner) = shapes[2:]
    forms = {"gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)}
    blocks = np.zeros(inner // _BLOCK, np.bool_)
    blocks[: round((1 - share) * blocks.size)] = True
    blocks = np.random.default_rng(0).permutation(blocks)
    masks = {}
    for name, shape in forms.items():
        tile = f"column:{_BLOCK}" if name == "down" else f"band:{_BLOCK}"
        grid = Geometry.parse(tile).grid(shape)
        masks[name] = [WeightMask(name, grid, blocks.reshape(grid.tiles), _no_bits)]
    structure = Structure((Block(("gate", "up"), "down", one_input=True),), (("gate", "up"),))
    plan = plan_weights(masks, structure, CompileRecipe(min_gain=0.0), cost)
    dense = sum(cost.product(n, k, sparse24=False) for n, k in ((both, hidden), forms["down"]))
    return min(dense, of_plan(plan).price(cost))


def _planned(cost: TimeCost, shapes: tuple[Shape, ...], tile: str, share: float) -> float:
    rng = np.random.default_rng(0)
    recipe = CompileRecipe(min_gain=0.0)
    total = 0.0
    for shape in shapes:
        mask = _mask(shape, tile, share, rng)
        total += price(shape, plan_weight("w", [mask], recipe, cost).pieces, cost)
    return total


def _mask(shape: Shape, tile: str, share: float, rng: np.random.Generator) -> WeightMask:
    grid = Geometry.parse(tile).grid(shape)
    dense = np.zeros(grid.areas.size, np.bool_)
    dense[: round((1 - share) * dense.size)] = True
    return WeightMask("w", grid, rng.permutation(dense).reshape(grid.tiles), _no_bits)


def _no_bits() -> Any:
    raise AssertionError("a plan reads tile maps alone")


def _print(model: str, target: Target, tokens: int, row: dict[str, Any]) -> None:
    mark = "*" if target.estimate else ""
    print(f"{model:13} {target.name + mark:13} {tokens:5}", end="")
    print(f"  full {row['full 2:4']:.2f}  FFN {row['FFN 2:4']:.2f}", end="")
    for label in ("ideal", *_GEOMETRIES, "branches"):
        cells = "/".join(f"{row[f'{label} {s:.0%}']:.2f}" for s in _SPARSITIES)
        print(f"  {label} {cells}", end="")
    print(flush=True)


def _patch(target: Target) -> dict[str, Any]:
    """The ideal kernel's gains beside PATCH's: 128 runs of 16 tokens, one of 2,048.

    Prompts count as tokens: with the generated ones alone, an A6000 would have to read the
    weights faster than its memory can.
    """
    hidden, inner, qkv, layers = _MODELS["LLaMA-2-7B"]
    shapes = ((qkv, hidden), (hidden, hidden), (2 * inner, hidden), (hidden, inner))
    speed, published = _PATCH[target.name]
    measured = 16 * (128 + 128) / speed * 1e6
    runs = ((16, 128), (2048, 1))
    dense = sum(count * layers * dense_us(target, m, shapes) for m, count in runs)
    sparse = sum(
        count * layers * TimeCost(target, ((m, 1.0),)).product(n, k, sparse24=True)
        for m, count in runs
        for n, k in shapes
    )
    found = [
        measured / (measured - 2 * sparsity * (dense - sparse))
        for sparsity in reversed(_SPARSITIES)
    ]
    # 1 - 1 / gain = 2 sparsity (1 - 1 / s) of the linear layers' share.
    saved = (1 - 1 / published[-1]) / (2 * max(_SPARSITIES) * dense / measured)
    implied = 1 / (1 - saved)
    ours = "/".join(f"{gain:.2f}" for gain in found)
    theirs = "/".join(f"{gain:.2f}" for gain in published)
    print(
        f"PATCH on {target.name}, LLaMA-2-7B, 25/35/45 %: published {theirs}, ideal {ours}; "
        f"linear layers {dense / measured:.0%} of the published dense time; all 2:4 is "
        f"{dense / sparse:.2f}x on them by the table, {implied:.2f}x by what was published"
    )
    return {
        "published": published,
        "ideal": found,
        "linear_share": dense / measured,
        "implied_full_2:4_of_linear_layers": implied,
        "full_2:4_of_linear_layers": dense / sparse,
    }


if __name__ == "__main__":
    main()
