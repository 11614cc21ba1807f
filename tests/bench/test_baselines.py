"""Baselines are what they are called: 2:4 in every weight, or in those of the MLP alone."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from patch_compile.bench.baselines import make_baselines
from patch_compile.bench.measure import bench_models
from patch_compile.compiler import compile_model
from patch_compile.errors import ModelError, RecipeError
from patch_compile.recipe import Baseline, BenchRecipe, CompileRecipe
from patch_compile.tiles.masks import Masks
from tests.bench.fake_timer import FakeTimer
from tests.passes.mlp import Mlp
from tests.support import masks_of, random_mask, random_weight, said, three_linears


@pytest.fixture
def pair(tmp_path: Path, rng: np.random.Generator) -> tuple[Path, Path]:
    model, masks, _ = three_linears(tmp_path, rng)
    return model, compile_model(model, masks, CompileRecipe()).save(tmp_path / "out")


def _matrices(path: Path) -> dict[str, NDArray[np.float32]]:
    """Every 2-D float initializer, (K, N)."""
    tensors = onnx.load(path).graph.initializer
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in tensors}
    return {n: a for n, a in arrays.items() if a.ndim == 2 and a.dtype.kind == "f"}


def _is_24(weight: NDArray[np.float32]) -> bool:
    """By definition, along K: nothing of ours counts."""
    groups = weight.T.reshape(weight.shape[1], -1, 4)
    return bool(((groups != 0).sum(axis=2) <= 2).all())


def test_all_24_is_the_larger_half_of_every_weight(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    found = make_baselines(*pair, ("all-2:4",), tmp_path / "made")
    merged = np.concatenate(list(_matrices(found["all-2:4"]).values()), axis=1)
    assert _is_24(merged)
    dense = np.concatenate(list(_matrices(pair[0]).values()), axis=1)
    columns = {tuple(column) for column in merged.T}
    for column in dense.T:
        groups = column.reshape(-1, 4)
        least = np.sort(np.abs(groups), axis=1)[:, 1:2]
        assert tuple(np.where(np.abs(groups) > least, groups, 0.0).reshape(-1)) in columns


def _beside_an_mlp(folder: Path, rng: np.random.Generator) -> tuple[Path, Masks]:
    """A gated MLP and, of the same x, a product that belongs to none."""
    other = helper.make_node("MatMul", ["x", "other.weight"], ["z"], name="/other/MatMul")
    mlp = Mlp(16, 32, extra=[other], outputs=("z",))
    arrays = {**mlp.arrays(rng), "other.weight": random_weight(rng, 24, 16)}
    masks = masks_of(*(random_mask(rng, n, a, "band:8") for n, a in arrays.items()))
    return mlp.save(folder / "model.onnx", arrays), masks


def test_only_the_mlp_is_24_in_ffn_only(tmp_path: Path, rng: np.random.Generator) -> None:
    model, masks = _beside_an_mlp(tmp_path, rng)
    compiled = compile_model(model, masks, CompileRecipe()).save(tmp_path / "out")
    found = make_baselines(model, compiled, ("ffn-only",), tmp_path / "made")
    report = json.loads(found["ffn-only"].with_name("report.json").read_text("utf-8"))
    changed = {w["masks"][0] for w in report["weights"] if w["lowering"] == "whole"}
    assert changed == {"gate.weight", "up.weight", "down.weight"}


def test_a_model_without_mlps_has_no_ffn_only(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no MLP is found") as caught:
        make_baselines(*pair, ("ffn-only",), tmp_path / "made")
    said(caught)


def test_dense_is_cast_as_the_compiled_model_was(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    model, masks, _ = three_linears(tmp_path, rng)
    compiled = compile_model(model, masks, CompileRecipe(dtype="fp16")).save(tmp_path / "out")
    found = make_baselines(model, compiled, ("dense", "all-2:4"), tmp_path / "made")
    for path in found.values():
        assert {a.dtype.name for a in _matrices(path).values()} == {"float16"}
    assert not any(_is_24(a) for a in _matrices(found["dense"]).values())


def test_an_uncast_model_needs_no_dense_baseline(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    assert make_baselines(*pair, ("dense",), tmp_path / "made") == {}


def test_baselines_are_measured_in_the_same_rounds(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Both are named compiled.onnx: the second to be opened is the baseline.
    timer = FakeTimer({"model.onnx": [1.0, 1.01], "compiled.onnx": [0.8, 0.7]})
    timer.install(monkeypatch)
    recipe = BenchRecipe(tokens=(8,), rounds=6, baselines=("dense", "all-2:4"))
    found = bench_models(*pair, recipe)
    ratios = {row.model: row.ratio.median for row in found.rows}
    assert ratios == pytest.approx(
        {"dense": 1.0, "dense again": 1.01, "compiled": 0.8, "all-2:4": 0.7}
    )
    report = json.loads(pair[1].with_name("report.json").read_text("utf-8"))
    assert report["measured"][0]["baselines"]["all-2:4"]["median"] == pytest.approx(0.7)


def test_a_cast_is_told_apart_from_a_cut(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, masks, _ = three_linears(tmp_path, rng)
    compiled = compile_model(model, masks, CompileRecipe(dtype="fp16")).save(tmp_path / "out")
    asked: tuple[tuple[tuple[Baseline, ...], str, bool], ...] = (
        ((), "model.onnx", True),
        (("dense",), "dense.onnx", False),
    )
    for baselines, base, cast in asked:
        factors = {base: [1.0, 1.0], "compiled.onnx": [0.8]}
        FakeTimer(factors).install(monkeypatch)
        recipe = BenchRecipe(tokens=(8,), rounds=6, baselines=baselines)
        assert bench_models(model, compiled, recipe).cast is cast


def test_baselines_of_a_quantised_model_are_refused(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    path = pair[1].with_name("report.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantized": {}}))
    with pytest.raises(RecipeError, match=r"is quantised; give models") as caught:
        make_baselines(*pair, ("all-2:4",), tmp_path / "made")
    said(caught)


def test_another_dense_model_is_refused(
    pair: tuple[Path, Path], tmp_path: Path, rng: np.random.Generator
) -> None:
    (tmp_path / "other").mkdir()
    other, _ = _beside_an_mlp(tmp_path / "other", rng)
    with pytest.raises(ModelError, match=r"has no weight 'a\.weight'") as caught:
        make_baselines(other, pair[1], ("all-2:4",), tmp_path / "made")
    said(caught)
