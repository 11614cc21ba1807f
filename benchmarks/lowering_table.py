"""How much of an ideal hybrid kernel's gain each lowering keeps, by GPU and tokens.

python benchmarks/lowering_table.py

Predicted from measured GEMM latencies, for the linear layers of whole models, with q, k, v
and gate, up merged in the dense baseline and in every row. Tile maps are drawn at random; a
cut that does not pay stays dense. `branches`: an MLP cut at one index in blocks of 128, and
whole weights of attention, an average over layers; `heads`: the same, and the attention cut
between its groups of heads. `ideal`: 1 / ((1 - f) + f / s), f the
share of the area in 2:4 tiles, s the gain of all of it; whole layers of 2:4 reach it. At the
end: the published end-to-end gains of PATCH (arXiv 2509.23410), whose kernel does not need
whole pieces, beside those of an ideal kernel and of the kernel as its authors chart it. What
is not linear layers is what their dense time leaves.
"""

from typing import Any

import numpy as np
from measuring import write_result

from patch_compile.recipe import CompileRecipe
from patch_compile.targets.target import Target, parse
from patch_compile.tiles.blocks import Block, Heads, Structure
from patch_compile.tiles.geometry import Geometry
from patch_compile.tiles.groups import plan_weights
from patch_compile.tiles.operations import of_plan, price
from patch_compile.tiles.planner import plan_weight
from patch_compile.tiles.time_cost import TimeCost, dense_us
from patch_compile.tiles.weight_mask import WeightMask

Shape = tuple[int, int]

# From the models' configs: hidden, intermediate, heads of queries, of keys and values.
_MODELS = {
    "LLaMA-2-7B": (4096, 11008, 32, 32),
    "Llama-3.2-1B": (2048, 8192, 32, 8),
    "Qwen2.5-7B": (3584, 18944, 28, 4),
}
_TARGETS = (
    *("a100-bf16", "h100-bf16", "h100-fp8", "b200-bf16", "b200-fp8"),
    *("rtx4090-bf16", "rtx4090-fp8", "rtx5080-bf16", "gb10-bf16", "a6000-fp16"),
)
_TOKENS = (16, 2048)
_SPARSITIES = (0.45, 0.35, 0.25)
_BLOCK = 128
_GEOMETRIES = {"free tiles": "128x128", "bands": "band:128", "columns": "column:128"}

# Published at batch 16 and 128 tokens in, by GPU and tokens out: dense tokens a second, gains
# at 25, 35, 45 % zeros (arXiv 2509.23410).
_PATCH = {
    ("a100-fp16", 128): (1876.24, (1.07, 1.11, 1.16)),
    ("a100-fp16", 1024): (812.55, (1.06, 1.09, 1.12)),
    ("a6000-fp16", 128): (1023.80, (1.18, 1.27, 1.38)),
    ("a6000-fp16", 1024): (435.42, (1.13, 1.18, 1.25)),
}
_BATCH, _PROMPT, _LAYERS = 16, 128, 32

# Gains of PATCH's kernel alone over a dense one of the same compiler, A100, batch 16, by share
# of 2:4 tiles, lowest and highest of the sizes charted (documentation of STOICC,
# github.com/Paramathic/stoicc, read off its bars).
_CHARTED = {0.25: (0.99, 1.07), 0.5: (1.09, 1.20), 0.75: (1.22, 1.36), 1.0: (1.46, 1.66)}
# The same for all 2:4 at 2,048 tokens; only that share is charted.
_CHARTED_PROMPT = (1.02, 1.31)


def main() -> None:
    print("speed-up over dense, predicted from measured GEMM latencies; * is an estimate")
    data: dict[str, Any] = {"rows": [], "patch": {}}
    for model, (*_, groups) in _MODELS.items():
        shapes = _shapes(model)
        for name in _TARGETS:
            for tokens in _TOKENS:
                row = _row(parse(name), tokens, shapes, groups)
                _print(model, parse(name), tokens, row)
                data["rows"].append({"model": model, "target": name, "tokens": tokens, **row})
    for name, out in _PATCH:
        data["patch"][f"{name}, {out} out"] = _patch(name, out)
    write_result("lowering_table", data)


def _shapes(model: str) -> tuple[Shape, ...]:
    """N, K of q with k and v, of o, of gate with up, and of down."""
    hidden, inner, heads, groups = _MODELS[model]
    qkv = hidden // heads * (heads + 2 * groups)
    return ((qkv, hidden), (hidden, hidden), (2 * inner, hidden), (hidden, inner))


def _row(
    target: Target, tokens: int, shapes: tuple[Shape, ...], groups: int
) -> dict[str, Any]:
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
        mlp = _mlp(cost, shapes, share)
        row[f"branches {sparsity:.0%}"] = dense / (qkv + out + mlp)
        row[f"heads {sparsity:.0%}"] = dense / (_attention(cost, shapes, groups, share) + mlp)
    return row


def _mlp(cost: TimeCost, shapes: tuple[Shape, ...], share: float) -> float:
    """The price of gate, up and down, tied, or of the dense ones where that is less."""
    (_, hidden), (_, inner) = shapes[2:]
    forms = {"gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)}
    block = Block(("gate", "up"), "down", one_input=True)
    return min(_dense(cost, shapes[2:]), _tied(cost, block, forms, inner // _BLOCK, share))


def _attention(cost: TimeCost, shapes: tuple[Shape, ...], groups: int, share: float) -> float:
    """The price of q, k, v and o, tied by groups of heads, or of the dense ones."""
    (qkv, hidden), _ = shapes[:2]
    keys = (qkv - hidden) // 2
    forms = {"q": (hidden, hidden), "k": (keys, hidden), "v": (keys, hidden)}
    # The second branch's launches: the attention's own, and the rotations of q and k.
    heads = Heads(groups, hidden // groups, (1, 1, 1), kernels=3)
    block = Block(("q", "k", "v"), "o", one_input=True, attends=True, heads=heads)
    tied = _tied(cost, block, {**forms, "o": (hidden, hidden)}, groups, share)
    return min(_dense(cost, shapes[:2]), tied)


def _dense(cost: TimeCost, shapes: tuple[Shape, ...]) -> float:
    return sum(cost.product(n, k, sparse24=False) for n, k in shapes)


def _tied(
    cost: TimeCost, block: Block, forms: dict[str, Shape], units: int, share: float
) -> float:
    """The price of a block whose weights share one choice a unit, at random."""
    dense = np.zeros(units, np.bool_)
    dense[: round((1 - share) * units)] = True
    dense = np.random.default_rng(0).permutation(dense)
    masks = {}
    for name, shape in forms.items():
        last = name == block.columns
        tile = f"column:{shape[1] // units}" if last else f"band:{shape[0] // units}"
        grid = Geometry.parse(tile).grid(shape)
        masks[name] = [WeightMask(name, grid, dense.reshape(grid.tiles), _no_bits)]
    structure = Structure((block,), (block.rows,))
    plan = plan_weights(masks, structure, CompileRecipe(min_gain=0.0), cost)
    return of_plan(plan).price(cost)


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
    for label in ("ideal", *_GEOMETRIES, "branches", "heads"):
        cells = "/".join(f"{row[f'{label} {s:.0%}']:.2f}" for s in _SPARSITIES)
        print(f"  {label} {cells}", end="")
    print(flush=True)


def _patch(name: str, out: int) -> dict[str, Any]:
    """Gains of the ideal kernel and of PATCH's as charted, beside those published.

    As many runs of 16 tokens as come out, one of 2,048. Prompts count as tokens: with the
    generated ones alone, an A6000 would have to read the weights faster than its memory can.
    """
    speed, published = _PATCH[name, out]
    measured = _BATCH * (_PROMPT + out) / speed * 1e6
    runs = ((_BATCH, out), (_BATCH * _PROMPT, 1))
    dense, sparse = (
        [count * _linear_us(parse(name), m, sparse24=kind) for m, count in runs]
        for kind in (False, True)
    )
    charted = [sparse[0], max(sparse[1], dense[1] / float(np.sqrt(np.prod(_CHARTED_PROMPT))))]
    shares = [2 * sparsity for sparsity in reversed(_SPARSITIES)]
    full, full_charted = sum(dense) - sum(sparse), sum(dense) - sum(charted)
    found: dict[str, Any] = {
        "published": published,
        "ideal": [measured / (measured - share * full) for share in shares],
        "as charted": [
            measured / (measured - share * _kept(share) * full_charted) for share in shares
        ],
        "linear_share": sum(dense) / measured,
        "prompt_share_of_linear": dense[1] / sum(dense),
        "full_2:4_of_linear_layers": sum(dense) / sum(sparse),
        "rest_ms_a_run": (measured - sum(dense)) / 1e3 / (out + 1),
    }
    cells = [
        f"{key} {'/'.join(f'{gain:.2f}' for gain in found[key])}"
        for key in ("published", "ideal", "as charted")
    ]
    print(
        f"PATCH on {name}, LLaMA-2-7B, {_PROMPT} in, {out} out, 25/35/45 %: "
        f"{', '.join(cells)}; linear layers {found['linear_share']:.0%} of the published time"
    )
    return found


def _linear_us(target: Target, tokens: int, *, sparse24: bool) -> float:
    cost, shapes = TimeCost(target, ((tokens, 1.0),)), _shapes("LLaMA-2-7B")
    return _LAYERS * sum(cost.product(n, k, sparse24=sparse24) for n, k in shapes)


def _kept(share: float) -> float:
    """Of the saving that an ideal kernel has at a share of 2:4 tiles, what PATCH's keeps."""
    shares = list(_CHARTED)
    saved = [1 - 1 / float(np.sqrt(low * high)) for low, high in _CHARTED.values()]
    kept = [own / (of * saved[-1]) for of, own in zip(shares, saved, strict=True)]
    return float(np.interp(share, shares, kept))


if __name__ == "__main__":
    main()
