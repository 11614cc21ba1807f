"""What a bundle's script measured elsewhere is judged as if it had been measured here."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from patch_compile.bench.imported import bench_of_results, imported_bench
from patch_compile.compiler import compile_model
from patch_compile.errors import ModelError
from patch_compile.recipe import BuildRecipe, CompileRecipe
from patch_compile.results import ModelResult, Results, bundle_engines
from patch_compile.runtimes.evidence import Evidence
from patch_compile.runtimes.gpu import Gpu
from tests.cli.conftest import Cli, cli  # noqa: F401  # a fixture
from tests.runtimes.standin import stand_in
from tests.support import said, three_linears
from tests.test_results import _layers, _run, _unpacked


def _result(name: str, factor: float, rounds: int = 6) -> ModelResult:
    """Runs of a GPU that slows down, and one that stalls in every round."""
    speeds = 1.0 + 0.1 * np.arange(rounds + 1)
    runs = {n: (factor * s, factor * s, 50.0) for n, s in enumerate(speeds)}
    return ModelResult(name, "0", "", Evidence("trtexec"), None, runs, {}, 1000)


def _results(*models: ModelResult) -> Results:
    return Results("10.13.0", Gpu("A100", 80, "550", 40960), 2, 64, models)


def test_rounds_are_judged_against_the_second_build_of_the_dense_model() -> None:
    models = [
        _result(n, f) for n, f in (("compiled", 0.8), ("dense", 1.0), ("dense_again", 1.02))
    ]
    found = bench_of_results(_results(*models), {2 * 64: {"a100-bf16": 0.75}})
    rows = {row.model: row for row in found.rows}
    assert list(rows) == ["dense", "dense again", "compiled"]
    assert rows["compiled"].ratio.median == pytest.approx(0.8)
    assert rows["compiled"].verdict == "faster"
    assert rows["compiled"].predicted == {"a100-bf16": 0.75}
    assert found.noise[64] == pytest.approx(0.02)
    assert (found.device, found.version) == ("A100", "10.13.0")
    assert rows["dense"].tokens_per_second == pytest.approx(
        2 * 64 / rows["dense"].seconds.median
    )
    # Milliseconds of the middle round, whose stall does not count.
    assert rows["dense"].seconds.median == pytest.approx(1.35e-3)
    assert found.models[0].engine_bytes == 1000


def test_without_a_second_build_nothing_is_judged() -> None:
    found = bench_of_results(_results(_result("compiled", 0.8), _result("dense", 1.0)))
    assert [row.verdict for row in found.rows] == [None, None]
    assert found.noise == {}


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ((_result("compiled", 0.8),), "no times of 'dense'"),
        ((_result("compiled", 0.8), _result("dense", 1.0, 3)), "3 rounds of all models"),
        (
            (replace(_result("compiled", 0.8), error="boom"), _result("dense", 1.0)),
            "no times of 'compiled'",
        ),
    ],
)
def test_too_little_is_refused(models: tuple[ModelResult, ...], message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        bench_of_results(_results(*models))
    said(caught)


@pytest.mark.parametrize(("name", "lost"), [("compiled", 1), ("dense", 0), ("dense_again", 3)])
def test_rounds_are_paired_by_number_where_some_were_lost(name: str, lost: int) -> None:
    factors = {"compiled": 0.97, "dense": 1.0, "dense_again": 1.0}
    models = [_result(n, f) for n, f in factors.items()]
    left = [
        replace(m, rounds={n: r for n, r in m.rounds.items() if (m.name, n) != (name, lost)})
        for m in models
    ]
    found = bench_of_results(_results(*left))
    rows = {row.model: row for row in found.rows}
    assert rows["compiled"].ratio.median == pytest.approx(0.97)
    assert rows["compiled"].verdict == "faster"
    assert found.noise[64] == pytest.approx(0.0)


@pytest.fixture
def returned(tmp_path: Path, rng: np.random.Generator) -> tuple[Path, Path]:
    """A compiled model with predictions, and the results of its bundle."""
    model, masks, _ = three_linears(tmp_path, rng, external=True)
    recipe = CompileRecipe(lowering="columns", target="a100-fp16", tokens=("128",))
    compiled = compile_model(model, masks, recipe).save(tmp_path / "out")
    asked = BuildRecipe(batch=(1, 2, 4), sequence=(1, 64, 128))
    bundle = bundle_engines(compiled, tmp_path / "out.tar", asked, dense=model)
    folder = _unpacked(bundle)
    ran = _run(folder, stand_in(tmp_path, layers=_layers(compiled)), 6)
    assert ran.returncode == 0, ran.stderr
    # Forth and back over the models.
    timed = [line for line in ran.stdout.splitlines() if "round" in line]
    order = [line.split()[1].rstrip(",") for line in timed]
    assert order[:6] == [*order[:3], *reversed(order[:3])]
    return compiled, folder / "results"


def test_engine_and_times_go_into_the_report(returned: tuple[Path, Path]) -> None:
    compiled, results = returned
    imported_bench(results, compiled)
    report = json.loads(compiled.with_name("report.json").read_text("utf-8"))
    assert report["engines"][0]["chosen"] == 3
    (row,) = report["measured"]
    assert (row["runtime"], row["tokens"], row["batch"]) == ("trtexec", 64, 2)
    # The stand-in takes equal times for all.
    assert row["ratio"]["median"] == pytest.approx(1.0)
    assert row["verdict"] == "inside the noise"
    assert report["versions"]["tensorrt"] == "10.5.0"


def test_bench_imports_on_the_command_line(
    returned: tuple[Path, Path],
    cli: Cli,  # noqa: F811
) -> None:
    compiled, results = returned
    ran = cli("bench", "--import", results, "--into", compiled)
    assert ran.code == 0, ran.err
    assert "trtexec, tensorrt 10.5.0" in ran.out
    assert "compiled at 64 tokens: inside the noise" in ran.out
    assert "engines of the dense model differ by up to 0.0%" in ran.out
    assert "(a100-fp16)" in ran.out
    assert "measured" in json.loads(compiled.with_name("report.json").read_text("utf-8"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--import", "none"], "results 'none' | hold no readable manifest.json"),
        (["a.onnx", "--import", "none"], "model 'a.onnx' | is given with --import"),
        (["a.onnx"], "models | are missing; give DENSE and COMPILED"),
        (["a.onnx", "b.onnx", "--into", "c.onnx"], "into | goes with --import"),
    ],
)
def test_what_does_not_go_together_is_refused(
    cli: Cli,  # noqa: F811
    arguments: list[str],
    message: str,
) -> None:
    ran = cli("bench", *arguments)
    assert (ran.code, ran.out) == (1, "")
    assert message in ran.err
    assert len(ran.err.splitlines()) == 1
