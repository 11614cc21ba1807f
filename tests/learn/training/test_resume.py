"""Runs that stop, by whatever, and go on."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from patch_compile.errors import ModelError, RecipeError
from patch_compile.learn.model import LoadedModel
from patch_compile.learn.training import learned
from patch_compile.learn.training.learned import learn_gates
from patch_compile.learn.training.train import Trainer
from tests.learn.tiny import tiny_model
from tests.learn.training.taught import log_rows, run_logits, run_recipe


class _Killed(BaseException):
    pass


def _stop_at(monkeypatch: pytest.MonkeyPatch, step: int, error: BaseException) -> None:
    take = Trainer._take

    def stopping(trainer: Trainer) -> Any:
        if trainer.step == step:
            raise error
        return take(trainer)

    monkeypatch.setattr(Trainer, "_take", stopping)


@contextmanager
def _killed_at(monkeypatch: pytest.MonkeyPatch, step: int) -> Iterator[None]:
    with monkeypatch.context() as patch:
        _stop_at(patch, step, _Killed())
        with pytest.raises(_Killed):
            yield


@pytest.mark.parametrize("method", ["topk-ste", "patch-joint", "patch-tile", "leap"])
def test_a_killed_run_goes_on_bit_for_bit(
    model: LoadedModel,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
) -> None:
    whole = learn_gates(model, [text], run_recipe(method, steps=8), tmp_path / "whole").cut(
        0.4
    )
    with _killed_at(monkeypatch, 5):
        learn_gates(model, [text], run_recipe(method, steps=8), tmp_path / "cut")
    assert log_rows(tmp_path / "cut")[-1]["step"] == "5"
    with monkeypatch.context() as patch:
        # The run knows where it started.
        patch.delattr(learned, "gather_statistics")
        resumed = learn_gates(
            model, [text], run_recipe(method, steps=8), tmp_path / "cut", resume=True
        ).cut(0.4)
    for name, mask in whole.weights.items():
        assert np.array_equal(mask.bits(), resumed.weights[name].bits())
        assert np.array_equal(mask.dense, resumed.weights[name].dense)
    one, other = run_logits(tmp_path / "whole"), run_logits(tmp_path / "cut")
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    logs = [log_rows(tmp_path / name) for name in ("whole", "cut")]
    assert [[_timeless(row) for row in rows] for rows in logs] == 2 * [
        [_timeless(row) for row in logs[0]]
    ]


def _timeless(row: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in row.items() if name != "seconds"}


def test_an_interrupt_saves_where_it_stood(
    model: LoadedModel, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _stop_at(monkeypatch, 4, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        learn_gates(model, [text], run_recipe(), tmp_path)
    assert json.loads((tmp_path / "state.json").read_text("utf-8"))["step"] == 4


def test_a_run_stopped_while_its_end_was_judged_is_judged_when_it_goes_on(
    model: LoadedModel, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = Trainer.judge

    def stopped(trainer: Trainer, windows: Any) -> Any:
        if trainer.step == 6:
            raise KeyboardInterrupt
        return judge(trainer, windows)

    whole = learn_gates(model, [text], run_recipe(), tmp_path / "whole").cut(0.4)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "judge", stopped)
        with pytest.raises(KeyboardInterrupt):
            learn_gates(model, [text], run_recipe(), tmp_path / "cut")
    assert log_rows(tmp_path / "cut")[-1]["held_out"] == ""
    resumed = learn_gates(model, [text], run_recipe(), tmp_path / "cut", resume=True).cut(0.4)
    assert resumed.made_by["held_out"] == whole.made_by["held_out"]


def test_a_finished_run_is_not_run_again(
    model: LoadedModel, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = learn_gates(model, [text], run_recipe(), tmp_path).cut(0.3)
    _stop_at(monkeypatch, 6, AssertionError("it ran"))
    again = learn_gates(model, [text], run_recipe(), tmp_path, resume=True).cut(0.3)
    assert all(
        np.array_equal(mask.bits(), again.weights[name].bits())
        for name, mask in first.weights.items()
    )


def test_a_run_that_lost_its_start_calibrates_anew(
    model: LoadedModel, text: Path, tmp_path: Path
) -> None:
    first = learn_gates(model, [text], run_recipe(), tmp_path).cut(0.3)
    (tmp_path / "start.json").unlink()
    again = learn_gates(model, [text], run_recipe(), tmp_path, resume=True).cut(0.3)
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
        learn_gates(model, [text], run_recipe(), tmp_path)
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
            learn_gates(model, [text], run_recipe(), tmp_path)
    assert json.loads((tmp_path / "state.json").read_text("utf-8"))["step"] == 3
    # As the message says.
    found = learn_gates(model, [text], run_recipe(lr=0.01), tmp_path, resume=True).cut(0.3)
    assert all(torch.isfinite(value).all() for value in run_logits(tmp_path).values())
    assert found.sparsity == pytest.approx(0.3, abs=0.05)


def test_runs_of_another_kind_are_refused(
    model: LoadedModel, text: Path, tmp_path: Path
) -> None:
    learn_gates(model, [text], run_recipe(steps=3), tmp_path / "run")
    with pytest.raises(RecipeError, match="is at step 3; --resume to go on"):
        learn_gates(model, [text], run_recipe(steps=3), tmp_path / "run")
    with pytest.raises(RecipeError, match=r"of another recipe: seed 0, now 1"):
        learn_gates(model, [text], run_recipe(steps=3, seed=1), tmp_path / "run", resume=True)
    with pytest.raises(RecipeError, match="of another model"):
        learn_gates(tiny_model(), [text], run_recipe(steps=3), tmp_path / "run", resume=True)
    other = Path(shutil.copy(text, tmp_path / "other.txt"))
    with pytest.raises(
        RecipeError, match=r"of another text: files .*text.txt.*, now .*other.txt"
    ):
        learn_gates(model, [other], run_recipe(steps=3), tmp_path / "run", resume=True)


def test_another_text_under_the_same_name_is_refused(
    model: LoadedModel, text: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copy(text, tmp_path / "text.txt"))
    learn_gates(model, [copy], run_recipe(steps=3), tmp_path / "run")
    copy.write_text(text.read_text("utf-8").replace("w1 ", "w2 "), "utf-8")
    with pytest.raises(RecipeError, match="of another text: tokens "):
        learn_gates(model, [copy], run_recipe(steps=3), tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    "damage", ["cut short", "no json", "arrays gone", "not ours", "start cut short"]
)
def test_damaged_checkpoints_are_refused_in_one_line(
    model: LoadedModel, text: Path, tmp_path: Path, damage: str
) -> None:
    learn_gates(model, [text], run_recipe(steps=3), tmp_path)
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
        learn_gates(model, [text], run_recipe(steps=3), tmp_path, resume=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", ["topk-ste", "patch-joint"])
def test_tied_tiles_go_together_and_a_killed_run_of_them_goes_on(
    model: LoadedModel,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
) -> None:
    recipe = run_recipe(method, tie=("mlp", "heads"), tie_block=16)
    whole = learn_gates(model, [text], recipe, tmp_path / "whole").cut(0.3)
    with _killed_at(monkeypatch, 4):
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
