"""How long planning takes on LLaMA-2-7B: 224 linear layers, up to 395,264 tiles.

python benchmarks/plan_time.py

Tile maps and scores are drawn at random; masks have no bits, which no plan reads. `plan`: of
given tile maps, three tenths dense; `budget`: choosing which tiles stay 2:4 for 1.1x, of maps
that are all 2:4. Seconds of this process's CPU time, the import of scipy within the first.
"""

import time
from typing import Any, NoReturn

import numpy as np
from measuring import write_result

from patch_compile.recipe import CompileRecipe
from patch_compile.tiles.blocks import Block, Structure
from patch_compile.tiles.geometry import Geometry
from patch_compile.tiles.groups import plan_weights
from patch_compile.tiles.time_budget import meet_budget
from patch_compile.tiles.time_cost import cost_of
from patch_compile.tiles.weight_mask import WeightMask

_LAYERS, _HIDDEN, _INNER = 32, 4096, 11008
_SHAPES = {
    **dict.fromkeys("qkvo", (_HIDDEN, _HIDDEN)),
    **dict.fromkeys(("gate", "up"), (_INNER, _HIDDEN)),
    "down": (_HIDDEN, _INNER),
}
_FREE, _TIED = "128x128", "tied blocks"
_GEOMETRIES = (_FREE, "band:128", "column:128", "weight", _TIED)
_DENSE = 0.3

Weights = dict[str, list[WeightMask]]


def main() -> None:
    data: dict[str, Any] = {}
    print(f"{'geometry':12} {'tiles':>8} {'plan s':>8} {'budget s':>9} {'gap':>8}")
    for geometry in _GEOMETRIES:
        row = data[geometry] = _row(geometry)
        cells = f"{row['tiles']:8} {row['plan_s']:8.2f} {row['budget_s']:9.2f}"
        print(f"{geometry:12} {cells} {row['gap']:8.2%}", flush=True)
    write_result("plan_time", data)


def _row(geometry: str) -> dict[str, Any]:
    structure = _structure()
    recipe = CompileRecipe(target="a100-bf16", tokens=("2048",), speedup="1.1x")
    cost = cost_of(recipe, list(_SHAPES.values()) * _LAYERS)
    assert cost is not None
    some, every = _weights(geometry, _DENSE), _weights(geometry, 0.0)
    start = time.process_time()
    plan_weights(some, structure, recipe, cost)
    planned = time.process_time()
    found = meet_budget(every, structure, recipe, cost)
    done = time.process_time()
    return {
        "tiles": sum(mask.dense.size for (mask,) in some.values()),
        "plan_s": planned - start,
        "budget_s": done - planned,
        "gap": found.gap,
        "saved": found.gain,
    }


def _structure() -> Structure:
    names = [f"{layer}." for layer in range(_LAYERS)]
    blocks = tuple(Block((f"{n}gate", f"{n}up"), f"{n}down", one_input=True) for n in names)
    alike = [tuple(f"{n}{w}" for w in "qkv") for n in names]
    return Structure(blocks, (*alike, *((f"{n}gate", f"{n}up") for n in names)))


def _weights(geometry: str, share: float) -> Weights:
    rng = np.random.default_rng(0)
    weights: Weights = {}
    for layer in range(_LAYERS):
        tied = rng.random(_INNER // 128) < share
        for name, shape in _SHAPES.items():
            mlp = geometry == _TIED and name in ("gate", "up", "down")
            tile = "column:128" if name == "down" else "band:128"
            tile = tile if mlp else geometry.replace(_TIED, "weight")
            grid = Geometry.parse(tile).grid(shape)
            dense = tied.reshape(grid.tiles) if mlp else rng.random(grid.tiles) < share
            ties = np.arange(dense.size, dtype=np.int32).reshape(grid.tiles) + 1000 * layer
            mask = WeightMask(
                f"{layer}.{name}",
                grid,
                dense,
                _no_bits,
                scores=rng.random(grid.tiles).astype(np.float32),
                ties=ties if mlp else None,
            )
            weights[mask.name] = [mask]
    return weights


def _no_bits() -> NoReturn:
    raise AssertionError("a plan read the keep bits")


if __name__ == "__main__":
    main()
