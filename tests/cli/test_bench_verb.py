"""`bench` on the command line: tables, files, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest

from patch_compile.compiler import compile_model
from patch_compile.recipe import CompileRecipe
from tests.bench.fake_timer import FakeTimer
from tests.cli.conftest import Cli, refused
from tests.support import Linear, linear_model, random_weight, three_linears


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Two models of which the second takes 0.8 of the first's time."""
    rng = np.random.default_rng(0)
    dense, compiled = (
        linear_model([Linear("a", random_weight(rng, 8, 8))], tmp_path / f"{name}.onnx")
        for name in ("dense", "compiled")
    )
    FakeTimer({"dense.onnx": [1.0, 1.02], "compiled.onnx": [0.8]}).install(monkeypatch)
    return dense, compiled


def test_the_tables_say_what_the_difference_is_worth(
    cli: Cli, pair: tuple[Path, Path]
) -> None:
    ran = cli("bench", *pair, "--tokens", "8", "--rounds", "6")
    assert ran.code == 0, ran.err
    assert "compiled at 8 tokens: 20.0% faster than dense" in ran.out
    assert "sessions of the dense model differ by up to 2.0%" in ran.out
    assert "unknown" in ran.out
    assert "predicted" not in ran.out


def test_a_difference_inside_the_noise_is_called_that(
    cli: Cli, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeTimer({"dense.onnx": [1.0, 1.02], "compiled.onnx": [0.99]}).install(monkeypatch)
    ran = cli("bench", *pair, "--rounds", "6")
    assert "compiled at 128 tokens: inside the noise (measured 0.990 of dense)" in ran.out


def test_predictions_get_a_column(
    cli: Cli, tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, masks, _ = three_linears(tmp_path, rng)
    recipe = CompileRecipe(target="a100-bf16", tokens=("128",))
    compiled = compile_model(model, masks, recipe).save(tmp_path / "out")
    FakeTimer({"model.onnx": [1.0, 1.02], "compiled.onnx": [0.8]}).install(monkeypatch)
    ran = cli("bench", model, compiled, "--rounds", "6")
    assert ran.code == 0, ran.err
    assert "predicted" in ran.out
    assert "(a100-bf16)" in ran.out
    assert "predicted: of the masked weights alone; measured: of the whole model" in ran.out


def test_json_is_complete_and_equals_the_file(
    cli: Cli, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    target = tmp_path / "bench.json"
    ran = cli("bench", *pair, "--rounds", "6", "--tokens", "1,8", "--json", "-o", target)
    found = json.loads(ran.out)
    assert found == json.loads(target.read_text())
    assert [row["tokens"] for row in found["rows"]] == [1, 1, 1, 8, 8, 8]
    assert found["rows"][2]["verdict"] == "faster"
    assert found["recipe"]["rounds"] == 6


@pytest.mark.parametrize(("kind", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_a_plot_is_drawn(
    cli: Cli, pair: tuple[Path, Path], tmp_path: Path, kind: str, start: bytes
) -> None:
    target = tmp_path / f"bench.{kind}"
    ran = cli("bench", *pair, "--rounds", "6", "--plot", target)
    assert ran.code == 0, ran.err
    drawn = target.read_bytes()
    assert drawn.startswith(start)
    assert len(drawn) > 5_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--plot", "bench.gif"], "plot 'bench.gif' | is of no kind we draw"),
        (["--baseline", "other.onnx"], "baseline | is 'other.onnx'; expected NAME=FILE"),
        (["--baseline", "dense=other.onnx"], "baseline 'dense' | is a name of ours"),
        (["--rounds", "2"], "rounds | is 2; expected a number from 5"),
        (["--tokens", "0"], "tokens | is 0; expected a number from 1"),
        (["--confidence", "1"], "confidence | is 1.0; expected"),
    ],
)
def test_mistakes_are_told_in_one_line(
    cli: Cli, pair: tuple[Path, Path], options: list[str], message: str
) -> None:
    ran = cli("bench", *pair, *options)
    refused(ran, message)


def test_a_missing_model_is_told_in_one_line(cli: Cli, tmp_path: Path) -> None:
    ran = cli("bench", tmp_path / "no.onnx", tmp_path / "no.onnx")
    assert ran.code == 1
    assert "is not a file" in ran.err
