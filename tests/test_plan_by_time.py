"""A plan by time, from files to the report: what is promised, and how it is told."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from patch_compile.cli.main import run
from patch_compile.compiler import compile_model, plan_model
from patch_compile.io.masks_file import save_masks
from patch_compile.page.render import page_of
from patch_compile.recipe import CompileRecipe
from patch_compile.tiles.masks import Masks
from patch_compile.tiles.weight_mask import from_keep
from tests.passes.mlp import Mlp, tied_masks

HIDDEN, INNER, BLOCK = 1024, 4096, 256


@pytest.fixture(scope="module")
def mlp(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Masks]:
    """A gated MLP all of whose tied blocks can be 2:4, with scores and ties."""
    rng = np.random.default_rng(0)
    made = Mlp(HIDDEN, INNER)
    arrays = made.arrays(rng)
    path = made.save(tmp_path_factory.mktemp("mlp") / "model.onnx", arrays)
    blocks = INNER // BLOCK
    plain = tied_masks(rng, made, arrays, BLOCK, np.zeros(blocks, np.bool_))
    scores = rng.random(blocks).astype(np.float32)
    masks = {}
    for name, mask in plain.weights.items():
        tiles = mask.dense.shape
        masks[name] = from_keep(
            name,
            mask.grid,
            mask.dense,
            mask.keep(),
            scores=scores.reshape(tiles),
            digests=mask.digests,
            geometry=mask.geometry,
            ties=np.arange(blocks, dtype=np.int32).reshape(tiles),
        )
    return path, Masks(masks)


@pytest.mark.parametrize("speedup", ["1.05x", "1.2x"])
@pytest.mark.parametrize("tokens", [("2048",), ("512:0.5", "4096:0.5")])
def test_the_promised_speedup_is_that_of_the_compiled_plan(
    mlp: tuple[Path, Masks], speedup: str, tokens: tuple[str, ...]
) -> None:
    path, masks = mlp
    recipe = CompileRecipe(target="rtx4090-bf16", tokens=tokens, speedup=speedup, min_gain=0.0)
    report = compile_model(path, masks, recipe).report
    assert report.totals["eligible"]
    assert report.speedup is not None
    assert report.speedup >= float(speedup[:-1]) - 1e-6
    assert report.made_by["budget"]["saved"] == pytest.approx(1 - 1 / report.speedup)
    shares = dict(recipe.profile)
    left = sum(shares[time["tokens"]] * time["ratio"] for time in report.predicted)
    assert report.speedup == pytest.approx(1 / left)


def test_masks_that_were_learned_and_compiled_for_a_speedup_have_a_page(
    mlp: tuple[Path, Masks],
) -> None:
    """The compile's budget is no promise that the masks were made for."""
    path, masks = mlp
    learned = {"model": "M", "recipe": {"sparsity": [0.5]}, "sparsity": 0.5}
    recipe = CompileRecipe(target="rtx4090-bf16", speedup="1.05x", min_gain=0.0)
    page = page_of(compile_model(path, Masks(masks.weights, learned), recipe).report.to_json())
    assert "patch-compile learn M --sparsity 0.5 -o MASKS.json\n" in page
    assert "patch-compile cut" not in page


def test_without_a_target_there_is_no_speedup(mlp: tuple[Path, Masks]) -> None:
    planned = plan_model(*mlp)
    assert planned.report.speedup is None
    assert '"speedup"' not in planned.plan.to_json()


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        (
            "plan-by-time",
            "--target rtx4090-bf16 --tokens 16:0.2,2048:0.8 --speedup 1.05x",
        ),
        # Nothing pays on few tokens, and that is the answer.
        ("plan-null", "--target h100-bf16 --tokens 64"),
    ],
)
def test_printed_plan_is_the_golden_one(
    mlp: tuple[Path, Masks],
    tmp_path: Path,
    golden: Any,
    capsys: pytest.CaptureFixture[str],
    name: str,
    asked: str,
) -> None:
    path, masks = mlp
    save_masks(masks, tmp_path / "masks.json")
    command = ["plan", str(path), "--tiles", str(tmp_path / "masks.json"), *asked.split()]
    assert run(command) == 0
    golden.check(f"{name}.txt", capsys.readouterr().out)
