"""TensorRT-RTX takes the operators of every lowering, over the ranges that are asked for."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from patch_compile.compiler import compile_model
from patch_compile.piece_sites import find_pieces
from patch_compile.recipe import BuildRecipe, CompileRecipe
from patch_compile.runtimes.engines import build_engine
from patch_compile.tiles.plan import Lowering
from tests.support import Linear, linear_model, masks_of, random_mask, random_weight

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed"
)

RECIPE = BuildRecipe(
    engine="tensorrt_rtx", sm=(86,), batch=(1, 2, 4), sequence=(1, 16, 32), timeout=120.0
)
N, K = 64, 64
GRIDS: dict[Lowering, tuple[str, list[list[bool]]]] = {
    "dense": ("weight", [[False]]),
    "whole": ("weight", [[False]]),
    "columns": ("band:16", [[True], [False], [True], [False]]),
    "reduction": ("column:16", [[True, False, True, False]]),
    "cover": (
        "16x16",
        [[True] * 4, [True, False, False, False], *[[True, False, False, False]] * 2],
    ),
}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("lowering", GRIDS)
def test_every_lowering_builds(
    tmp_path: Path, rng: np.random.Generator, lowering: Lowering, dtype: str
) -> None:
    weight = random_weight(rng, N, K, dtype)
    model = linear_model([Linear("a", weight)], tmp_path / "model.onnx")
    geometry, dense = GRIDS[lowering]
    mask = random_mask(rng, "a.weight", weight, geometry, dense=np.array(dense))
    compiled = compile_model(model, masks_of(mask), CompileRecipe(lowering=lowering))
    assert compiled.report.weights[0].lowering == lowering
    path = compiled.save(tmp_path / "out")
    result = build_engine(path, path.with_suffix(".engine"), RECIPE)
    assert result.bytes > 0
    log = result.log.read_text("utf-8")
    sites, _ = find_pieces(path)
    assert [site.node for site in sites if f"[ONNX Layer: {site.node}]" not in log] == []


def test_least_best_and_most_reach_the_engine(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    model = linear_model(
        [Linear("a", random_weight(rng, N, K, "float16"))], tmp_path / "m.onnx"
    )
    engine = tmp_path / "m.engine"
    plans = set()
    for sequence in ((1, 16, 32), (1, 16, 64)):
        build_engine(model, engine, replace(RECIPE, sequence=sequence))
        facts = json.loads((tmp_path / "m.engine.json").read_text("utf-8"))
        assert facts["profiles"]["x"] == [
            [b, t, K] for b, t in zip((1, 2, 4), sequence, strict=True)
        ]
        plans.add(engine.read_bytes())
    assert len(plans) == 2
