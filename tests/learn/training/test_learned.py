"""Whole runs on a model of two layers that has learned to count."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from patch_compile.errors import RecipeError
from patch_compile.learn.model import LoadedModel
from patch_compile.learn.text import split_windows
from patch_compile.learn.training.learned import learn_gates
from patch_compile.recipe import LearnRecipe
from tests.learn.tiny import one_shot, tiny_model
from tests.learn.training.taught import (
    METHODS,
    WINDOW,
    log_rows,
    masked_loss,
    run_logits,
    run_recipe,
    write_counting,
)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("distill", [True, False])
def test_learning_beats_its_own_start_at_the_exact_budget(
    model: LoadedModel, text: Path, tmp_path: Path, method: str, distill: bool
) -> None:
    recipe = run_recipe(method, steps=40, batch=8, distill=distill)
    masks = learn_gates(model, [text], recipe, tmp_path).cut(0.4)
    start = LearnRecipe(tile="16x16", sparsity=(0.4,), samples=16, window=WINDOW)
    assert masked_loss(model, masks) < masked_loss(model, one_shot(model, text, start))
    total = sum(m.shape[0] * m.shape[1] for m in masks.weights.values())
    assert abs(masks.sparsity - 0.4) * total <= 16 * 16 / 4 + 1


@pytest.mark.parametrize("method", ["topk-ste", "maskllm", "patch-tile", "patch-joint"])
def test_one_run_gives_every_budget(
    model: LoadedModel, text: Path, tmp_path: Path, method: str
) -> None:
    found = learn_gates(model, [text], run_recipe(method), tmp_path)
    total = sum(p.numel() for n, p in model.module.named_parameters() if "proj" in n)
    fewer: Any = None
    for sparsity in (0.0, 0.1, 0.45, 0.5):
        masks = found.cut(sparsity)
        assert abs(masks.sparsity - sparsity) * total <= 16 * 16 / 4 + 1
        for mask in masks.weights.values():
            mask.check()
            assert mask.scores is not None
            counts = (~mask.keep()).sum()
            assert counts == mask.grid.areas[~mask.dense].sum() // 2
        sparse = [~mask.dense for mask in masks.weights.values()]
        if fewer is not None:
            assert all((a <= b).all() for a, b in zip(fewer, sparse, strict=True))
        fewer = sparse


def test_the_start_is_judged_as_the_masks_of_one_pass(
    model: LoadedModel, text: Path, tmp_path: Path
) -> None:
    recipe = run_recipe(steps=40, batch=8)
    masks = learn_gates(model, [text], recipe, tmp_path).cut(0.4)
    held_out = split_windows(
        [text], model.tokenizer, needed=320, window=WINDOW, holdout=4, seed=recipe.seed
    ).held_out
    ids = torch.from_numpy(held_out).long()
    judged = masks.made_by["held_out"]
    start = one_shot(
        model, text, LearnRecipe(tile="16x16", sparsity=(0.4,), samples=16, window=WINDOW)
    )
    learning = [m for m in start.weights.values() if not m.dense.all()]
    density = 1 - sum(m.zeros() for m in learning) / sum(m.keep().size for m in learning)
    for what, expected in (("start", start), ("end", masks)):
        loss = masked_loss(model, expected, ids)
        assert judged[what]["loss"] == pytest.approx(loss, rel=1e-5)
        assert judged[what]["density"] == pytest.approx(density, abs=1e-6)
    assert judged["end"]["loss"] < judged["start"]["loss"]


def test_nothing_held_out_is_nothing_judged(
    model: LoadedModel, text: Path, tmp_path: Path
) -> None:
    found = learn_gates(model, [text], run_recipe(holdout=0, steps=1), tmp_path)
    assert "held_out" not in found.cut(0.4).made_by
    assert [row["step"] for row in log_rows(tmp_path)] == ["1"]


def test_leap_needs_no_pattern_and_goes_beyond_a_half(
    model: LoadedModel, text: Path, tmp_path: Path
) -> None:
    found = learn_gates(model, [text], run_recipe("leap", sparsity=(0.7,)), tmp_path)
    masks = found.cut(0.7)
    total = sum(m.shape[0] * m.shape[1] for m in masks.weights.values())
    assert sum(m.zeros() for m in masks.weights.values()) == round(0.7 * total)
    assert all(mask.dense.all() for mask in masks.weights.values())


def test_tiles_of_topk_can_be_learned_beside(
    model: LoadedModel, text: Path, tmp_path: Path
) -> None:
    recipe = run_recipe(select="learned", tile_start="random")
    learn_gates(model, [text], recipe, tmp_path / "run")
    state = run_logits(tmp_path / "run")
    tiles = [value for key, value in state.items() if key.endswith("/tiles")]
    moments = [value for key, value in state.items() if key.endswith("/tiles/exp_avg")]
    assert len(moments) == len(tiles) > 0
    assert all(moment.abs().sum() > 0 for moment in moments)


def test_the_same_recipe_gives_the_same_masks_and_leaves_the_model_alone(
    model: LoadedModel, text: Path, tmp_path: Path
) -> None:
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    flags = [module.training for module in model.module.modules()]
    first, again = (
        learn_gates(model, [text], run_recipe("patch-joint"), tmp_path / name).cut(0.4)
        for name in ("first", "again")
    )
    for name, mask in first.weights.items():
        assert np.array_equal(mask.bits(), again.weights[name].bits())
    after = model.module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert flags == [module.training for module in model.module.modules()]
    assert all(parameter.requires_grad for parameter in model.module.parameters())


def test_recomputing_changes_no_logit(model: LoadedModel, text: Path, tmp_path: Path) -> None:
    for recompute in (False, True):
        recipe = run_recipe("patch-joint", recompute=recompute)
        learn_gates(model, [text], recipe, tmp_path / str(recompute))
    kept, made_again = run_logits(tmp_path / "False"), run_logits(tmp_path / "True")
    assert all(torch.equal(value, made_again[key]) for key, value in kept.items())
    assert not any(getattr(m, "gradient_checkpointing", False) for m in model.module.modules())
    assert not any(module.training for module in model.module.modules())


def test_accumulated_passes_are_the_mean_of_their_batches(
    model: LoadedModel, text: Path, tmp_path: Path
) -> None:
    recipes = {
        "together": run_recipe(batch=4, steps=3, holdout=0),
        "apart": run_recipe(batch=2, accumulate=2, steps=3, holdout=0),
    }
    for name, recipe in recipes.items():
        learn_gates(model, [text], recipe, tmp_path / name)
    together, apart = run_logits(tmp_path / "together"), run_logits(tmp_path / "apart")
    for key, value in together.items():
        # Adam divides by gradients that may be tiny: sums in another order show a little.
        torch.testing.assert_close(value, apart[key], rtol=1e-3, atol=1e-3)


def test_bf16_passes_leave_logits_and_adam_in_fp32(
    model: LoadedModel, text: Path, tmp_path: Path
) -> None:
    learn_gates(model, [text], run_recipe("patch-joint", precision="bf16"), tmp_path)
    assert {value.dtype for value in run_logits(tmp_path).values()} == {torch.float32}


def test_a_sparsity_that_leaves_nothing_to_learn_is_told(
    model: LoadedModel, text: Path, tmp_path: Path
) -> None:
    for method in METHODS:
        with pytest.raises(RecipeError, match=r"sparsity . 0 leaves every weight dense"):
            learn_gates(model, [text], run_recipe(method, sparsity=(0.0,)), tmp_path)


@pytest.mark.parametrize(
    "kind", ["llama", "qwen2", "qwen3", "mistral", "gemma", "gpt2", "opt"]
)
def test_every_family_learns(kind: str, tmp_path: Path) -> None:
    model = tiny_model(kind)
    text = write_counting(tmp_path / "text.txt", 40)
    recipe = run_recipe("patch-joint", steps=2)
    learn_gates(model, [text], recipe, tmp_path / "run")
    moments = [v for k, v in run_logits(tmp_path / "run").items() if k.endswith("exp_avg")]
    assert moments
    assert all(moment.abs().sum() > 0 for moment in moments)
