import csv
import sys
from pathlib import Path
from typing import Any

import pytest

from patch_compile.errors import RuntimeUnavailable
from patch_compile.learn.training.board import check_board
from patch_compile.learn.training.learned import learn_gates
from patch_compile.recipe import LearnRecipe
from tests.learn.tiny import tiny_model, write_text


def _learned(folder: Path, text: Path, steps: int, **options: Any) -> None:
    recipe = LearnRecipe(
        method="topk-ste", tile="band:8", samples=2, window=16, steps=steps, holdout=2,
        checkpoint_every=2,
    )  # fmt: skip
    learn_gates(tiny_model(layers=1), [text], recipe, folder, **options)


def test_tensorboard_shows_what_the_log_has(tmp_path: Path) -> None:
    events: Any = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    text, folder = write_text(tmp_path / "text.txt", 400), tmp_path / "run"
    _learned(folder, text, 4, tensorboard=True)
    shown = events.EventAccumulator(str(folder))
    shown.Reload()
    with (folder / "log.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert set(shown.Tags()["scalars"]) == rows[0].keys() - {"step"}
    for name in shown.Tags()["scalars"]:
        logged = [(int(row["step"]), float(row[name])) for row in rows if row[name]]
        found = [(event.step, event.value) for event in shown.Scalars(name)]
        # Float32 in TensorBoard's files.
        assert found == [(step, pytest.approx(value, rel=1e-6)) for step, value in logged]
    assert [event.step for event in shown.Scalars("held_out")][-1] == 4


def test_nothing_is_written_for_it_unasked(tmp_path: Path) -> None:
    _learned(tmp_path / "run", write_text(tmp_path / "text.txt", 400), 1)
    assert not list((tmp_path / "run").glob("events*"))


def test_without_the_package_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(RuntimeUnavailable, match=r"pip install 'tensorboard>=[0-9.]+'$"):
        check_board()
