"""Whole runs on a model of two layers that has learned to count."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from patch_compile.errors import ModelError, RecipeError
from patch_compile.learn.model import LoadedModel, load_model
from patch_compile.learn.text import split_windows
from patch_compile.learn.training import learned
from patch_compile.learn.training.learned import learn_gates
from patch_compile.learn.training.train import Trainer
from patch_compile.recipe import LearnRecipe
from tests.learn.tiny import one_shot, tiny_model
from tests.learn.training.taught import WINDOW, masked_loss, taught_model, write_counting

# Rates that move logits far enough in a few steps; the methods' own are for thousands.
METHODS: dict[str, dict[str, Any]] = {
    "topk-ste": {"lr": 0.05},
    "maskllm": {"lr": 0.02, "norm_weight": 0.1},
    "patch-tile": {"lr": 0.01},
    "patch-joint": {"lr": 0.02, "norm_weight": 0.1},
    "leap": {"lr": 0.02, "norm_weight": 0.1},
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return taught_model(tmp_path_factory.mktemp("taught") / "model")


@pytest.fixture
def model(checkpoint: Path) -> LoadedModel:
    return load_model(str(checkpoint))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_counting(tmp_path_factory.mktemp("text") / "text.txt", 700)


def _recipe(method: str = "topk-ste", **options: Any) -> LearnRecipe:
    base: dict[str, Any] = {
        "method": method,
        "tile": "16x16",
        "sparsity": (0.4,),
        "samples": 16,
        "window": WINDOW,
        "steps": 6,
        "batch": 2,
        "holdout": 4,
        "checkpoint_every": 3,
        **METHODS[method],
    }
    return LearnRecipe(**{**base, **options})


def _logits(folder: Path) -> dict[str, Any]:
    (arrays,) = folder.glob("step-*.safetensors")
    return load_file(arrays)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("distill", [True, False])
def test_learning_beats_its_own_start_at_the_exact_budget(
    model: LoadedModel, text: Path, tmp_path: Path, method: str, distill: bool
) -> None:
    recipe = _recipe(method, steps=40, batch=8, distill=distill)
    masks = learn_gates(model, [text], recipe, tmp_path).cut(0.4)
    start = LearnRecipe(tile="16x16", sparsity=(0.4,), samples=16, window=WINDOW)
    assert masked_loss(model, masks) < masked_loss(model, one_shot(model, text, start))
    total = sum(m.shape[0] * m.shape[1] for m in masks.weights.values())
    assert abs(masks.sparsity - 0.4) * total <= 16 * 16 / 4 + 1


@pytest.mark.parametrize("method", ["topk-ste", "maskllm", "patch-tile", "patch-joint"])
def test_one_run_gives_every_budget(
    model: LoadedModel, text: Path, tmp_path: Path, method: str
) -> None:
    found = learn_gates(model, [text], _recipe(method), tmp_path)
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
    recipe = _recipe(steps=40, batch=8)
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
    found = learn_gates(model, [text], _recipe(holdout=0, steps=1), tmp_path)
    assert "held_out" not in found.cut(0.4).made_by
    assert [row["step"] for row in _rows(tmp_path)] == ["1"]


def test_leap_needs_no_pattern_and_goes_beyond_a_half(
    model: LoadedModel, text: Path, tmp_path: Path
) -> None:
    found = learn_gates(model, [text], _recipe("leap", sparsity=(0.7,)), tmp_path)
    masks = found.cut(0.7)
    total = sum(m.shape[0] * m.shape[1] for m in masks.weights.values())
    assert sum(m.zeros() for m in masks.weights.values()) == round(0.7 * total)
    assert all(mask.dense.all() for mask in masks.weights.values())


def test_tiles_of_topk_can_be_learned_beside(
    model: LoadedModel, text: Path, tmp_path: Path
) -> None:
    recipe = _recipe(select="learned", tile_start="random")
    learn_gates(model, [text], recipe, tmp_path / "run")
    state = _logits(tmp_path / "run")
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
        learn_gates(model, [text], _recipe("patch-joint"), tmp_path / name).cut(0.4)
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
        recipe = _recipe("patch-joint", recompute=recompute)
        learn_gates(model, [text], recipe, tmp_path / str(recompute))
    kept, made_again = _logits(tmp_path / "False"), _logits(tmp_path / "True")
    assert all(torch.equal(value, made_again[key]) for key, value in kept.items())
    assert not any(getattr(m, "gradient_checkpointing", False) for m in model.module.modules())
    assert not any(module.training for module in model.module.modules())


def test_accumulated_passes_are_the_mean_of_their_batches(
    model: LoadedModel, text: Path, tmp_path: Path
) -> None:
    recipes = {
        "together": _recipe(batch=4, steps=3, holdout=0),
        "apart": _recipe(batch=2, accumulate=2, steps=3, holdout=0),
    }
    for name, recipe in recipes.items():
        learn_gates(model, [text], recipe, tmp_path / name)
    together, apart = _logits(tmp_path / "together"), _logits(tmp_path / "apart")
    for key, value in together.items():
        # Adam divides by gradients that may be tiny: sums in another order show a little.
        torch.testing.assert_close(value, apart[key], rtol=1e-3, atol=1e-3)


def test_bf16_passes_leave_logits_and_adam_in_fp32(
    model: LoadedModel, text: Path, tmp_path: Path
) -> None:
    learn_gates(model, [text], _recipe("patch-joint", precision="bf16"), tmp_path)
    assert {value.dtype for value in _logits(tmp_path).values()} == {torch.float32}


class _Killed(BaseException):
    pass


def _stop_at(monkeypatch: pytest.MonkeyPatch, step: int, error: BaseException) -> None:
    take = Trainer._take

    def stopping(trainer: Trainer) -> Any:
        if trainer.step == step:
            raise error
        return take(trainer)

    monkeypatch.setattr(Trainer, "_take", stopping)


@pytest.mark.parametrize("method", ["topk-ste", "patch-joint", "patch-tile", "leap"])
def test_a_killed_run_goes_on_bit_for_bit(
    model: LoadedModel,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
) -> None:
    whole = learn_gates(model, [text], _recipe(method, steps=8), tmp_path / "whole").cut(0.4)
    with monkeypatch.context() as patch, pytest.raises(_Killed):  # noqa: PT012 # both end here
        _stop_at(patch, 5, _Killed())
        learn_gates(model, [text], _recipe(method, steps=8), tmp_path / "cut")
    assert _rows(tmp_path / "cut")[-1]["step"] == "5"
    with monkeypatch.context() as patch:
        # The run knows where it started.
        patch.delattr(learned, "gather_statistics")
        resumed = learn_gates(
            model, [text], _recipe(method, steps=8), tmp_path / "cut", resume=True
        ).cut(0.4)
    for name, mask in whole.weights.items():
        assert np.array_equal(mask.bits(), resumed.weights[name].bits())
        assert np.array_equal(mask.dense, resumed.weights[name].dense)
    one, other = _logits(tmp_path / "whole"), _logits(tmp_path / "cut")
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    logs = [_rows(tmp_path / name) for name in ("whole", "cut")]
    assert [[_timeless(row) for row in rows] for rows in logs] == 2 * [
        [_timeless(row) for row in logs[0]]
    ]


def _rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _timeless(row: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in row.items() if name != "seconds"}


def test_an_interrupt_saves_where_it_stood(
    model: LoadedModel, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _stop_at(monkeypatch, 4, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        learn_gates(model, [text], _recipe(), tmp_path)
    assert json.loads((tmp_path / "state.json").read_text("utf-8"))["step"] == 4


def test_a_finished_run_is_not_run_again(
    model: LoadedModel, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = learn_gates(model, [text], _recipe(), tmp_path).cut(0.3)
    _stop_at(monkeypatch, 6, AssertionError("it ran"))
    again = learn_gates(model, [text], _recipe(), tmp_path, resume=True).cut(0.3)
    assert all(
        np.array_equal(mask.bits(), again.weights[name].bits())
        for name, mask in first.weights.items()
    )


def test_a_run_that_lost_its_start_calibrates_anew(
    model: LoadedModel, text: Path, tmp_path: Path
) -> None:
    first = learn_gates(model, [text], _recipe(), tmp_path).cut(0.3)
    (tmp_path / "start.json").unlink()
    again = learn_gates(model, [text], _recipe(), tmp_path, resume=True).cut(0.3)
    for name, mask in first.weights.items():
        assert np.array_equal(mask.bits(), again.weights[name].bits())
        assert np.array_equal(mask.dense, again.weights[name].dense)


def test_a_loss_that_is_no_number_stops_with_a_diagnosis(
    model: LoadedModel, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = Trainer.loss

    def diverging(trainer: Trainer, ids: Any) -> Any:
        return loss(trainer, ids) * (float("nan") if trainer.step == 4 else 1.0)

    monkeypatch.setattr(Trainer, "loss", diverging)
    with pytest.raises(ModelError, match=r"loss . is nan at step 5 .learning rate .*--resume"):
        learn_gates(model, [text], _recipe(), tmp_path)
    assert json.loads((tmp_path / "state.json").read_text("utf-8"))["step"] == 3


def test_a_gradient_that_is_no_number_is_no_step(
    model: LoadedModel, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    density = Trainer._density

    def spoilt(trainer: Trainer) -> float:
        if trainer.step == 4:
            # After the backward pass, which it can only come from.
            next(iter(trainer._logits())).grad.view(-1)[0] = float("inf")  # type: ignore[union-attr]
        return density(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_density", spoilt)
        with pytest.raises(ModelError, match=r"norm of the gradients . is \w+ at step 5 "):
            learn_gates(model, [text], _recipe(), tmp_path)
    assert json.loads((tmp_path / "state.json").read_text("utf-8"))["step"] == 3
    # As the message says.
    found = learn_gates(model, [text], _recipe(lr=0.01), tmp_path, resume=True).cut(0.3)
    assert all(torch.isfinite(value).all() for value in _logits(tmp_path).values())
    assert found.sparsity == pytest.approx(0.3, abs=0.05)


def test_runs_of_another_kind_are_refused(
    model: LoadedModel, text: Path, tmp_path: Path
) -> None:
    learn_gates(model, [text], _recipe(steps=3), tmp_path / "run")
    with pytest.raises(RecipeError, match="is at step 3; --resume to go on"):
        learn_gates(model, [text], _recipe(steps=3), tmp_path / "run")
    with pytest.raises(RecipeError, match=r"of another recipe: seed 0, now 1"):
        learn_gates(model, [text], _recipe(steps=3, seed=1), tmp_path / "run", resume=True)
    with pytest.raises(RecipeError, match="of another model"):
        learn_gates(tiny_model(), [text], _recipe(steps=3), tmp_path / "run", resume=True)
    other = Path(shutil.copy(text, tmp_path / "other.txt"))
    with pytest.raises(
        RecipeError, match=r"of another text: files .*text.txt.*, now .*other.txt"
    ):
        learn_gates(model, [other], _recipe(steps=3), tmp_path / "run", resume=True)


def test_another_text_under_the_same_name_is_refused(
    model: LoadedModel, text: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copy(text, tmp_path / "text.txt"))
    learn_gates(model, [copy], _recipe(steps=3), tmp_path / "run")
    copy.write_text(text.read_text("utf-8").replace("w1 ", "w2 "), "utf-8")
    with pytest.raises(RecipeError, match="of another text: tokens "):
        learn_gates(model, [copy], _recipe(steps=3), tmp_path / "run", resume=True)


def test_a_sparsity_that_leaves_nothing_to_learn_is_told(
    model: LoadedModel, text: Path, tmp_path: Path
) -> None:
    for method in METHODS:
        with pytest.raises(RecipeError, match=r"sparsity . 0 leaves every weight dense"):
            learn_gates(model, [text], _recipe(method, sparsity=(0.0,)), tmp_path)


@pytest.mark.parametrize(
    "damage", ["cut short", "no json", "arrays gone", "not ours", "start cut short"]
)
def test_damaged_checkpoints_are_refused_in_one_line(
    model: LoadedModel, text: Path, tmp_path: Path, damage: str
) -> None:
    learn_gates(model, [text], _recipe(steps=3), tmp_path)
    (arrays,) = tmp_path.glob("step-*.safetensors")
    index = tmp_path / "state.json"
    if damage == "cut short":
        arrays.write_bytes(arrays.read_bytes()[:-100])
    elif damage == "arrays gone":
        arrays.unlink()
    elif damage == "start cut short":
        (tmp_path / "start.safetensors").write_bytes(b"")
    else:
        index.write_text("{" if damage == "no json" else '{"step": 3}', "utf-8")
    with pytest.raises(RecipeError, match=r"run '.*' \| ") as caught:
        learn_gates(model, [text], _recipe(steps=3), tmp_path, resume=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "kind", ["llama", "qwen2", "qwen3", "mistral", "gemma", "gpt2", "opt"]
)
def test_every_family_learns(kind: str, tmp_path: Path) -> None:
    model = tiny_model(kind)
    text = write_counting(tmp_path / "text.txt", 40)
    recipe = _recipe("patch-joint", steps=2)
    learn_gates(model, [text], recipe, tmp_path / "run")
    moments = [v for k, v in _logits(tmp_path / "run").items() if k.endswith("exp_avg")]
    assert moments
    assert all(moment.abs().sum() > 0 for moment in moments)


@pytest.mark.parametrize("method", ["topk-ste", "patch-joint"])
def test_tied_tiles_go_together_and_a_killed_run_of_them_goes_on(
    model: LoadedModel,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
) -> None:
    recipe = _recipe(method, tie=("mlp", "heads"), tie_block=16)
    whole = learn_gates(model, [text], recipe, tmp_path / "whole").cut(0.3)
    with monkeypatch.context() as patch, pytest.raises(_Killed):  # noqa: PT012 # both end here
        _stop_at(patch, 4, _Killed())
        learn_gates(model, [text], recipe, tmp_path / "cut")
    resumed = learn_gates(model, [text], recipe, tmp_path / "cut", resume=True).cut(0.3)
    for name, mask in whole.weights.items():
        assert np.array_equal(mask.bits(), resumed.weights[name].bits())
    for block in range(2):
        mlp = f"model.layers.{block}.mlp"
        gate, up, down = (
            whole.weights[f"{mlp}.{n}_proj.weight"] for n in ("gate", "up", "down")
        )
        assert np.array_equal(gate.dense, up.dense)
        assert np.array_equal(gate.dense.ravel(), down.dense.ravel())
