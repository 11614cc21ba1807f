"""Folders of runs that were killed, interrupted, damaged or are of something else."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from patch_compile.errors import RecipeError
from patch_compile.learn.training import run_folder
from patch_compile.learn.training.gate import Gate, Moment, parameters_of
from patch_compile.learn.training.patterns import TopTwoPattern
from patch_compile.learn.training.run_folder import RunFolder
from patch_compile.learn.training.schedule import Annealed
from patch_compile.tiles.geometry import Geometry
from patch_compile.tiles.masks import Masks

IDENTITY = {"recipe": {"lr": 0.1, "tie": ("mlp",)}, "model": {"w": "abc"}}


def _gates(width: int = 16) -> dict[str, Gate]:
    seeded = torch.Generator().manual_seed(width)
    weight = torch.randn(8, width, generator=seeded)
    grid = Geometry.parse("4x8").grid((8, width))
    pattern, annealed = TopTwoPattern(), Annealed(1.0, 1.0)
    stored = pattern.start(weight.abs(), seeded)
    tiles = torch.randn(grid.tiles, generator=seeded)
    return {
        "w": Gate("w", grid, pattern, Moment(annealed, annealed), tiles=tiles, stored=stored)
    }


def _stepped(gates: dict[str, Gate], steps: int) -> torch.optim.Optimizer:
    adam = torch.optim.Adam(parameters_of(gates).values(), lr=0.1)
    for step in range(steps):
        for parameter in parameters_of(gates).values():
            parameter.grad = torch.full_like(parameter, 1.0 + step)
        adam.step()
    return adam


def _saved(path: Path, steps: int = 3) -> RunFolder:
    run = RunFolder(path, IDENTITY)
    gates = _gates()
    run.save(steps, gates, _stepped(gates, steps))
    return run


def test_a_checkpoint_brings_back_logits_and_adam_exactly(tmp_path: Path) -> None:
    whole, gates = _gates(), _gates()
    _stepped(whole, 4)
    run = _saved(tmp_path, 3)
    state = run.begin(resume=True)
    assert state is not None
    assert state.step == 3
    adam = torch.optim.Adam(parameters_of(gates).values(), lr=0.1)
    state.load(gates, adam)
    # Nothing holds on to the file, which the next checkpoint deletes.
    mapped = {tensor.data_ptr() for tensor in state.tensors.values()}
    moments = [entry["exp_avg"].data_ptr() for entry in adam.state.values()]
    assert moments
    assert not mapped & {*moments, *(p.data_ptr() for p in parameters_of(gates).values())}
    for parameter in parameters_of(gates).values():
        parameter.grad = torch.full_like(parameter, 4.0)
    adam.step()
    expected = parameters_of(whole)
    assert all(torch.equal(p, expected[key]) for key, p in parameters_of(gates).items())


def test_a_checkpoint_that_was_not_finished_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, gates = _saved(tmp_path, 3), _gates()
    optimizer = _stepped(gates, 4)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # noqa: PT012 # both end here
        patch.setattr(run_folder, "write_text", killed)
        run.save(4, gates, optimizer)
    state = run.load()
    assert state is not None
    assert state.step == 3
    run.save(5, gates, optimizer)
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-0000005.safetensors"]


def test_rows_after_the_checkpoint_and_half_rows_go(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, IDENTITY)
    for step in range(1, 13):
        run.log({"step": step, "loss": 0.5})
    with (tmp_path / "log.csv").open("a", encoding="utf-8") as file:
        file.write("1")
    run.trim_log(10)
    rows = (tmp_path / "log.csv").read_text("utf-8").splitlines()
    assert rows == ["step,loss", *(f"{step},0.5" for step in range(1, 11))]


HEADER = "step,held_out,hard_density\n"


def test_the_first_and_the_last_judgement_are_told(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(f"{HEADER}0,3.5,0.75\n1,,\n2,3.25,0.5\n3,,\n", "utf-8")
    assert RunFolder(tmp_path, IDENTITY).judged()["held_out"] == {
        "start": {"loss": 3.5, "density": 0.75},
        "end": {"loss": 3.25, "density": 0.5},
    }


@pytest.mark.parametrize(
    "log",
    [
        None,
        "",
        "step,loss\n0,1\n1,2\n",
        # Of a version that did not judge the start; without held-out windows.
        f"{HEADER}1,,\n2,3.0,0.5\n4,3.0,0.5\n",
        f"{HEADER}1,,\n",
        f"{HEADER}0,3.0,0.5\n1,,\n",
        # Edited by hand.
        f"{HEADER}0,3.0,0.5\n1,much,0.5\n",
        f"{HEADER}0,3.0,0.5\n1,nan,0.5\n",
        f"{HEADER}0,3.0\n1,3.0,0.5\n",
        b"\xff\xfe",
    ],
)
def test_a_log_without_judgements_is_no_error(tmp_path: Path, log: str | bytes | None) -> None:
    if log is not None:
        data = log.encode() if isinstance(log, str) else log
        (tmp_path / "log.csv").write_bytes(data)
    assert RunFolder(tmp_path, IDENTITY).judged() == {}


@pytest.mark.parametrize("log", ["", "ste", "step,loss\n", "step,loss\n1"])
def test_a_log_of_a_killed_run_does_not_stop_the_next(tmp_path: Path, log: str) -> None:
    (tmp_path / "log.csv").write_text(log, "utf-8")
    run = RunFolder(tmp_path, IDENTITY)
    assert run.begin(resume=False) is None
    assert (tmp_path / "log.csv").read_text("utf-8").count("\n") <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": None}, "not of this version"),
        ({"version": 2}, "not of this version"),
        ({"identity": 3}, "not of this version"),
        ({"format": "else"}, "not of this version"),
        ({"step": 99}, "has arrays that cannot be read"),
        ({"identity": {**IDENTITY, "recipe": {"lr": 0.2}}}, "another recipe: lr 0.2, now 0.1"),
        ({"identity": {}}, "another recipe"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    run = _saved(tmp_path)
    index = tmp_path / "state.json"
    index.write_text(json.dumps(json.loads(index.read_text("utf-8")) | change), "utf-8")
    with pytest.raises(RecipeError, match=message) as caught:
        run.begin(resume=True)
    assert "\n" not in str(caught.value)


def test_files_of_others_stay(tmp_path: Path) -> None:
    theirs = tmp_path / "step-5000.safetensors"
    theirs.write_bytes(b"theirs")
    _saved(tmp_path)
    assert theirs.read_bytes() == b"theirs"


def test_a_log_of_something_else_is_refused(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text("epoch,loss\n1,2.5\n", "utf-8")
    with pytest.raises(RecipeError, match=r"log\.csv that is not of learning, .*'epoch,loss'"):
        RunFolder(tmp_path, IDENTITY).begin(resume=False)
    assert log.read_text("utf-8") == "epoch,loss\n1,2.5\n"


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run", IDENTITY).owned():
        other = RunFolder(tmp_path / "run", {})
        with pytest.raises(RecipeError, match="by another process that learns"), other.owned():
            pass
    with other.owned():
        pass


def test_arrays_of_other_gates_are_refused(tmp_path: Path) -> None:
    state = _saved(tmp_path).load()
    assert state is not None
    other = _gates(width=32)
    with pytest.raises(RecipeError, match=r"has no w/tiles of shape \(2, 4\) in step-0000003"):
        state.load(other, _stepped(other, 0))
    save_file({"x": torch.zeros(2)}, state.path)
    again = RunFolder(tmp_path, IDENTITY).load()
    assert again is not None
    with pytest.raises(RecipeError, match="has no w/tiles"):
        again.load(_gates(), _stepped(_gates(), 0))


def test_a_folder_that_cannot_be_made_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with (
            pytest.raises(RecipeError, match=r"run '.*' \| is a file, or below") as caught,
            RunFolder(path, IDENTITY).owned(),
        ):
            pass
        assert "\n" not in str(caught.value)
    (tmp_path / "run" / "log.csv").mkdir(parents=True)
    with pytest.raises(RecipeError, match="cannot be written: Is a directory"):
        RunFolder(tmp_path / "run", IDENTITY).log({"step": 1})


@pytest.mark.parametrize("lost", ["start.json", "start.safetensors", None])
def test_a_start_replaces_what_is_left_of_an_earlier_one(
    tmp_path: Path, lost: str | None
) -> None:
    run = RunFolder(tmp_path, IDENTITY)
    run.keep_start(Masks({}, {"seed": 0}))
    if lost is not None:
        (tmp_path / lost).unlink()
    run.keep_start(Masks({}, {"seed": 1}))
    start = run.start()
    assert start is not None
    assert start.made_by == {"seed": 1}
