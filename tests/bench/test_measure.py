"""Models take turns, equal ones are called equal, and what a report predicted is shown."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from patch_compile.bench.measure import bench_models
from patch_compile.compiler import compile_model
from patch_compile.errors import ModelError, RecipeError
from patch_compile.recipe import BenchRecipe, CompileRecipe
from tests.bench.fake_timer import FakeTimer
from tests.support import Linear, linear_model, random_weight, said, three_linears

RECIPE = BenchRecipe(tokens=(1, 8), rounds=6, warmup=2, runs=3)


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Path]:
    rng = np.random.default_rng(0)
    return {
        name: linear_model(
            [Linear("a", random_weight(rng, 8, 8))], tmp_path / f"{name}.onnx", external=True
        )
        for name in ("dense", "compiled", "other")
    }


@pytest.fixture
def timer(monkeypatch: pytest.MonkeyPatch) -> FakeTimer:
    """Compiled takes 0.8 of dense, the other model 1.01; two dense sessions differ by 2 %."""
    factors = {"dense.onnx": [1.0, 1.02], "compiled.onnx": [0.8], "other.onnx": [1.01]}
    timer = FakeTimer(factors)
    timer.install(monkeypatch)
    return timer


def test_ratios_are_those_of_the_models(models: dict[str, Path], timer: FakeTimer) -> None:
    found = bench_models(
        models["dense"], models["compiled"], RECIPE, baselines={"other": models["other"]}
    )
    rows = {(row.model, row.tokens): row for row in found.rows}
    for tokens in (1, 8):
        ratios = {name: row.ratio.median for (name, t), row in rows.items() if t == tokens}
        expected = {"dense": 1.0, "dense again": 1.02, "compiled": 0.8, "other": 1.01}
        assert ratios == pytest.approx(expected)
        assert found.noise[tokens] == pytest.approx(0.02)
    assert rows["compiled", 8].verdict == "faster"
    assert rows["other", 8].verdict == "inside the noise"
    assert rows["dense", 8].verdict is None
    row = rows["compiled", 8]
    assert row.tokens_per_second == pytest.approx(8 / row.seconds.median)
    assert [m.model for m in found.models] == ["dense", "dense again", "compiled", "other"]


def test_every_round_times_every_model_once_in_a_new_order(
    models: dict[str, Path], timer: FakeTimer
) -> None:
    bench_models(models["dense"], models["compiled"], RECIPE)
    timed = [name for name, what, value in timer.calls if (what, value) == ("times", 3)]
    rounds = [tuple(timed[at : at + 3]) for at in range(0, len(timed), 3)]
    assert len(rounds) == 2 * RECIPE.rounds
    assert {tuple(sorted(r)) for r in rounds} == {
        ("compiled.onnx", "dense.onnx", "dense.onnx")
    }
    # No place is favoured: each comes as often as the others.
    places = [r.index("compiled.onnx") for r in rounds]
    assert [places.count(place) for place in range(3)] == [4, 4, 4]


def test_each_number_of_tokens_is_fed_and_warmed_up(
    models: dict[str, Path], timer: FakeTimer
) -> None:
    bench_models(models["dense"], models["compiled"], RECIPE)
    fed = [value for name, what, value in timer.calls if what == "feed"]
    warm = [value for name, what, value in timer.calls if (what, value) == ("times", 2)]
    assert fed == [1, 1, 1, 8, 8, 8]
    assert len(warm) == 6


def test_sizes_count_the_data_files(models: dict[str, Path], timer: FakeTimer) -> None:
    found = bench_models(models["dense"], models["compiled"], RECIPE)
    path = models["dense"]
    size = path.stat().st_size + Path(f"{path}.data").stat().st_size
    assert found.models[0].bytes == size
    assert found.models[0].peak_bytes is None


def test_what_the_compiler_predicts_stands_beside_what_is_measured(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, masks, _ = three_linears(tmp_path, rng)
    recipe = CompileRecipe(target="a100-bf16", tokens=("8:0.5", "64:0.5"))
    compiled = compile_model(model, masks, recipe).save(tmp_path / "out")
    FakeTimer({"model.onnx": [1.0, 1.02], "compiled.onnx": [0.8]}).install(monkeypatch)
    found = bench_models(model, compiled, RECIPE)
    report = json.loads(compiled.with_name("report.json").read_text("utf-8"))
    ratios = {entry["tokens"]: entry["ratio"] for entry in report["predicted"]}
    assert set(ratios) == {8, 64}
    predicted = {(row.model, row.tokens): row.predicted for row in found.rows}
    assert predicted["compiled", 8] == {"a100-bf16": ratios[8]}
    assert predicted["compiled", 1] == predicted["dense", 8] == {}
    one, eight = report["measured"]
    assert (one["tokens"], eight["tokens"]) == (1, 8)
    assert eight["ratio"]["median"] == pytest.approx(0.8)
    assert eight["noise"] == pytest.approx(0.02)
    assert (eight["verdict"], eight["runtime"], eight["device"]) == (
        "faster",
        "ort-cpu",
        "a machine",
    )
    assert report["versions"]["onnxruntime"] == "7.0"
    page = compiled.with_name("report.html").read_text("utf-8")
    assert "a machine" in page


def test_a_second_benchmark_replaces_the_first_and_keeps_others(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, masks, _ = three_linears(tmp_path, rng)
    compiled = compile_model(model, masks, CompileRecipe()).save(tmp_path / "out")
    for factor, tokens in ((0.8, (1, 8)), (0.5, (8, 16))):
        FakeTimer({"model.onnx": [1.0, 1.0], "compiled.onnx": [factor]}).install(monkeypatch)
        bench_models(model, compiled, replace(RECIPE, tokens=tokens))
    measured = json.loads(compiled.with_name("report.json").read_text("utf-8"))["measured"]
    ratios = {entry["tokens"]: entry["ratio"]["median"] for entry in measured}
    assert ratios == pytest.approx({1: 0.8, 8: 0.5, 16: 0.5})


def test_the_largest_of_several_rebuilds_is_the_noise(
    models: dict[str, Path], timer: FakeTimer
) -> None:
    timer.factors["dense.onnx"] = [1.0, 1.01, 0.93]
    found = bench_models(models["dense"], models["compiled"], replace(RECIPE, rebuilds=2))
    assert found.noise[8] == pytest.approx(0.07)
    assert [m.model for m in found.models][:3] == ["dense", "dense again", "dense again 2"]


def test_a_model_without_a_report_is_measured_all_the_same(
    models: dict[str, Path], timer: FakeTimer
) -> None:
    assert bench_models(models["dense"], models["compiled"], RECIPE).rows
    assert not models["compiled"].with_name("report.json").exists()


def test_damaged_predictions_are_refused(models: dict[str, Path], timer: FakeTimer) -> None:
    models["compiled"].with_name("report.json").write_text('{"predicted": [{"tokens": 8}]}')
    with pytest.raises(ModelError, match=r"no predictions that can be read") as caught:
        bench_models(models["dense"], models["compiled"], RECIPE)
    said(caught)


@pytest.mark.parametrize("name", ["dense", "dense again", "compiled"])
def test_a_taken_name_is_refused(models: dict[str, Path], name: str) -> None:
    with pytest.raises(RecipeError, match=r"name of ours") as caught:
        bench_models(
            models["dense"], models["compiled"], RECIPE, baselines={name: models["other"]}
        )
    said(caught)


def test_every_model_is_closed_even_after_an_error(
    models: dict[str, Path], timer: FakeTimer, monkeypatch: pytest.MonkeyPatch
) -> None:
    timer.factors["compiled.onnx"] = []
    with pytest.raises(IndexError):
        bench_models(models["dense"], models["compiled"], RECIPE)
    assert [model.closed for model in timer.opened] == [True, True]


def test_the_result_is_json(models: dict[str, Path], timer: FakeTimer) -> None:
    found = bench_models(models["dense"], models["compiled"], RECIPE).to_json()
    again = json.loads(json.dumps(found, allow_nan=False))
    assert again["runtime"] == {"name": "ort-cpu", "version": "7.0", "device": "a machine"}
    assert len(again["rows"][0]["samples"]) == RECIPE.rounds
    assert set(again["noise"]) == {"1", "8"}


def test_a_real_model_of_more_work_is_slower(tmp_path: Path, rng: np.random.Generator) -> None:
    small = linear_model([Linear("a", random_weight(rng, 8, 1024))], tmp_path / "s.onnx")
    large = linear_model([Linear("a", random_weight(rng, 2048, 1024))], tmp_path / "l.onnx")
    recipe = BenchRecipe(tokens=(64,), rounds=9, warmup=1, threads=1)
    found = bench_models(small, large, recipe)
    row = next(row for row in found.rows if row.model == "compiled")
    # 256 times the multiply-adds: no load on the machine hides that.
    assert row.ratio.median > 4
    assert row.verdict == "slower"
    assert found.models[0].nodes == {"CPUExecutionProvider": 1}
    assert found.models[0].peak_bytes is not None
