"""Interrupts fall between steps, and what a step waits for."""

import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from patch_compile.errors import RecipeError
from patch_compile.learn.training import learned
from patch_compile.learn.training.learned import learn_gates
from patch_compile.learn.training.train import Trainer
from patch_compile.tiles.geometry import Geometry
from tests.learn.tiny import short_recipe, tiny_model, write_text


def _learn(folder: Path, text: Path, *, resume: bool = False, progress: Any = None) -> Any:
    model = tiny_model(layers=1)
    return learn_gates(model, [text], short_recipe(), folder, resume=resume, progress=progress)


def _logits(folder: Path) -> dict[str, Any]:
    (arrays,) = folder.glob("step-*.safetensors")
    return load_file(arrays)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return write_text(tmp_path / "text.txt", 400)


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(torch.equal(value, other[key]) for key, value in one.items())


def test_an_interrupt_inside_adam_waits_for_it_and_loses_nothing(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _learn(tmp_path / "whole", text)
    adam, calls = torch.optim.Adam.step, []

    def interrupted(optimizer: Any, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return adam(optimizer, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # noqa: PT012 # both end here
        patch.setattr(torch.optim.Adam, "step", interrupted)
        _learn(tmp_path / "cut", text)
    assert (tmp_path / "cut" / "step-0000003.safetensors").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    _learn(tmp_path / "cut", text, resume=True)
    assert _same(_logits(tmp_path / "whole"), _logits(tmp_path / "cut"))
    assert _steps(tmp_path / "cut") == ["0", "1", "2", "3", "4"]


def _steps(folder: Path) -> list[str]:
    rows = (folder / "log.csv").read_text("utf-8").splitlines()
    return [row.partition(",")[0] for row in rows[1:]]


def test_an_interrupt_before_the_first_step_leaves_no_checkpoint(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: Trainer, __: int) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # noqa: PT012 # both end here
        patch.setattr(Trainer, "_pass", interrupted)
        _learn(tmp_path / "run", text)
    assert not (tmp_path / "run" / "state.json").exists()
    _learn(tmp_path / "run", text)


def test_an_interrupted_judgement_keeps_the_row_of_its_step(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = Trainer.judge

    def interrupted(trainer: Trainer, windows: Any) -> Any:
        if trainer.step > 0:
            raise KeyboardInterrupt
        return judge(trainer, windows)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # noqa: PT012 # both end here
        patch.setattr(Trainer, "judge", interrupted)
        _learn(tmp_path / "run", text)
    assert _steps(tmp_path / "run") == ["0", "1", "2"]
    _learn(tmp_path / "run", text, resume=True)
    assert _steps(tmp_path / "run") == ["0", "1", "2", "3", "4"]


def test_a_thread_can_learn(text: Path, tmp_path: Path) -> None:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(_learn(tmp_path / "run", text)))
    thread.start()
    thread.join()
    assert found[0].cut(0.25).sparsity == pytest.approx(0.25, abs=0.01)


def test_progress_says_loss_and_densities(text: Path, tmp_path: Path) -> None:
    said: list[tuple[int, int, str]] = []
    _learn(tmp_path / "run", text, progress=lambda *what: said.append(what))
    learning = [what for what in said if what[2].startswith("learning, ")]
    assert [done for done, _, _ in learning] == [1, 2, 3, 4]
    assert "hard" not in learning[0][2]
    # The density of the last judgement, after step 2, while step 3 goes on.
    log = (tmp_path / "run" / "log.csv").read_text("utf-8").splitlines()
    hard = float(log[3].rpartition(",")[2])
    assert learning[2][2].endswith(f"(hard {hard:.3f})")
    assert f"loss {float(log[4].split(',')[1]):.3f}, " in learning[2][2]


@pytest.mark.parametrize(
    ("flag", "name"),
    [
        ("DEEPSPEED", "DeepSpeed"),
        ("MEGATRON_LM", "Megatron-LM"),
        ("PARALLELISM_CONFIG", "a parallelism config"),
    ],
)
def test_what_would_cut_logits_is_refused_before_anything_slow(
    flag: str, name: str, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learned, "gather_statistics", lambda *_: pytest.fail("it was slow"))
    # As `accelerate launch` sets it; without a GPU Accelerate itself forgets it.
    monkeypatch.setenv(f"ACCELERATE_USE_{flag}", "true")
    with pytest.raises(RecipeError, match=f"are spread by {name}, which learning cannot do"):
        _learn(tmp_path / "run", text)


def test_judged_masks_are_hard_and_without_noise(text: Path, tmp_path: Path) -> None:
    _learn(tmp_path / "run", text)
    state = _logits(tmp_path / "run")
    grid = Geometry.parse("16x16")
    kept = size = 0.0
    for key, stored in state.items():
        if key.endswith("/stored"):
            areas = grid.grid((stored.shape[0], 4 * stored.shape[2])).areas
            dense = state[key.replace("stored", "tiles")].numpy() > 0
            kept += areas[dense].sum() + areas[~dense].sum() / 2
            size += areas.sum()
    log = (tmp_path / "run" / "log.csv").read_text("utf-8").splitlines()
    assert float(log[-1].rpartition(",")[2]) == pytest.approx(kept / size, abs=1e-7)


def test_no_window_is_learned_from_twice(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    loss = Trainer.loss

    def noted(trainer: Trainer, ids: Any) -> Any:
        seen.append(ids.numpy())
        return loss(trainer, ids)

    monkeypatch.setattr(Trainer, "loss", noted)
    recipe = short_recipe(batch=3, accumulate=2, steps=3)
    learn_gates(tiny_model(layers=1), [text], recipe, tmp_path / "run")
    windows = np.concatenate(seen)
    assert windows.shape == (18, 16)
    assert len(np.unique(windows, axis=0)) == 18
