"""What we say of engines, put to a GPU. `scripts/gpu_check.sh` prints a verdict a test."""

import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from patch_compile import api
from patch_compile.bench.imported import imported_bench
from patch_compile.bench.measure import bench_models
from patch_compile.errors import PatchCompileError, RecipeError
from patch_compile.recipe import BenchRecipe, BuildRecipe
from patch_compile.results import bundle_engines, import_results
from patch_compile.runtimes.doctor import diagnose
from patch_compile.runtimes.engine_file import check_engine
from patch_compile.runtimes.engines import EngineResult
from patch_compile.runtimes.gpu import Gpu
from patch_compile.runtimes.onnxruntime import open_session, run_session
from patch_compile.runtimes.trtexec_command import find_trtexec
from tests.gpu.conftest import SIZE, TOKENS, Pair
from tests.gpu.run_engine import NOTHING
from tests.support import unpack

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="session")
def built(
    pair: Pair, tensorrt: BuildRecipe, gpu: Gpu, tmp_path_factory: pytest.TempPathFactory
) -> EngineResult:
    """The compiled model, built once by TensorRT's Python package."""
    folder = tmp_path_factory.mktemp("tensorrt")
    return api.build_engine(pair.compiled, folder / "m.engine", tensorrt)


@pytest.fixture(scope="session")
def timed(
    pair: Pair, trtexec: BuildRecipe, gpu: Gpu, tmp_path_factory: pytest.TempPathFactory
) -> EngineResult:
    """The compiled model, built and timed once by trtexec."""
    folder = tmp_path_factory.mktemp("trtexec")
    return api.build_engine(pair.compiled, folder / "m.engine", trtexec)


def test_tensorrt_tells_the_kernel_of_every_sparse_product(
    pair: Pair, built: EngineResult
) -> None:
    joined = api.join_engine(pair.compiled, built)
    assert sum(weight.eligible for weight in joined.weights) == pair.sparse
    assert not any(weight.unknown for weight in joined.weights), joined.to_json()


def test_tensorrt_chooses_sparse_kernels_for_large_products(
    pair: Pair, built: EngineResult, sparse_gpu: Gpu
) -> None:
    joined = api.join_engine(pair.compiled, built)
    assert sum(weight.chosen for weight in joined.weights) > 0, joined.to_json()


def test_tensorrt_chooses_none_where_none_was_requested(
    pair: Pair, tensorrt: BuildRecipe, gpu: Gpu, tmp_path: Path
) -> None:
    asked = replace(tensorrt, sparse=False)
    result = api.build_engine(pair.compiled, tmp_path / "m.engine", asked)
    joined = api.join_engine(pair.compiled, result)
    assert not any(layer.sparse for layer in result.evidence.layers)
    assert sum(weight.chosen for weight in joined.weights) == 0


def test_tensorrts_timings_are_kept_and_taken_again(
    small: Pair, tensorrt: BuildRecipe, gpu: Gpu, tmp_path: Path
) -> None:
    api.build_engine(small.compiled, tmp_path / "m.engine", tensorrt)
    kept = (tmp_path / "timing.cache").read_bytes()
    assert kept
    second = api.build_engine(small.compiled, tmp_path / "m.engine", tensorrt)
    assert "started anew" not in second.log.read_text("utf-8", "replace")
    # Nothing was timed that had not been timed before.
    assert len((tmp_path / "timing.cache").read_bytes()) == len(kept)


@pytest.mark.parametrize(
    "changes",
    [
        {"strict_nans": True},
        {"optimization_level": 1},
        {"workspace": 1024},
        {"hardware": "ampere-plus"},
        {"refit": True},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_tensorrt_takes_the_option(
    small: Pair,
    tensorrt: BuildRecipe,
    sparse_gpu: Gpu,
    tmp_path: Path,
    changes: dict[str, Any],
) -> None:
    asked = replace(tensorrt, **changes)
    assert api.build_engine(small.compiled, tmp_path / "m.engine", asked).bytes > 0


def test_tensorrts_precision_flags_are_taken_by_10_and_refused_by_11(
    small: Pair, tensorrt: BuildRecipe, gpu: Gpu, tmp_path: Path
) -> None:
    asked = replace(tensorrt, precision=("fp16",))
    module = importlib.import_module("tensorrt")
    if hasattr(module.BuilderFlag, "FP16"):
        assert api.build_engine(small.compiled, tmp_path / "m.engine", asked).bytes > 0
        return
    with pytest.raises(RecipeError, match=r"precision \| asks for fp16"):
        api.build_engine(small.compiled, tmp_path / "m.engine", asked)


def test_tensorrt_tells_the_memory_that_its_engine_takes(
    pair: Pair, built: EngineResult, gpu: Gpu
) -> None:
    memory = built.evidence.memory
    assert memory.total is not None, memory
    assert memory.context is not None
    assert 0 < memory.total < gpu.memory * 2**20


def test_an_engine_passes_the_check_before_use_on_the_gpu_it_was_built_on(
    pair: Pair, built: EngineResult, gpu: Gpu
) -> None:
    check_engine(built.path, pair.compiled, version=built.version, gpu=gpu)


def test_tensorrts_engine_computes_what_onnxruntime_computes(
    pair: Pair, built: EngineResult, gpu: Gpu, tmp_path: Path
) -> None:
    tokens = min(64, SIZE)
    x = np.random.default_rng(1).standard_normal((1, tokens, SIZE)).astype(np.float16)
    np.save(tmp_path / "x.npy", x)
    files = [built.path, tmp_path / "x.npy", tmp_path / "out.npz"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu.run_engine", *files],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode == NOTHING:
        pytest.skip("neither torch with CUDA nor polygraphy is installed")
    assert done.returncode == 0, done.stderr[-300:]
    expected = run_session(open_session(pair.compiled), {"x": x})
    found = np.load(tmp_path / "out.npz")
    for name, value in expected.items():
        error = np.linalg.norm(found[name] - value.astype(np.float32))
        # fp16 products over 4096 terms, summed in another order.
        assert error / np.linalg.norm(value.astype(np.float32)) < 2e-2, name


def test_trtexecs_log_tells_what_is_eligible_and_chosen(timed: EngineResult) -> None:
    assert timed.evidence.sparsity.found is not None
    assert timed.evidence.sparsity.chose is not None


def test_trtexec_finds_every_sparse_product_of_ours_eligible(
    pair: Pair, timed: EngineResult, sparse_gpu: Gpu
) -> None:
    assert timed.evidence.sparsity.found == pair.sparse


def test_trtexec_chooses_sparse_kernels_for_large_products(
    pair: Pair, timed: EngineResult, sparse_gpu: Gpu
) -> None:
    joined = api.join_engine(pair.compiled, timed)
    assert sum(weight.chosen for weight in joined.weights) > 0, joined.to_json()


def test_trtexecs_layers_and_times_are_read(pair: Pair, timed: EngineResult) -> None:
    evidence = timed.evidence
    assert evidence.layers
    assert evidence.performance is not None
    assert evidence.performance.compute is not None
    assert evidence.performance.throughput is not None
    joined = api.join_engine(pair.compiled, timed)
    assert all(piece.layer for weight in joined.weights for piece in weight.pieces)


def test_the_compiled_engine_is_faster_than_the_dense_one_beyond_the_noise(
    pair: Pair, trtexec: BuildRecipe, sparse_gpu: Gpu
) -> None:
    recipe = BenchRecipe(
        runtime="trtexec", tokens=(TOKENS,), rounds=5, warmup=0, timeout=trtexec.timeout
    )
    found = bench_models(pair.dense, pair.compiled, recipe)
    rows = {row.model: row for row in found.rows}
    assert rows["compiled"].verdict == "faster", (rows["compiled"].ratio, found.noise)


def test_a_bundle_runs_on_this_machine_and_its_results_are_read(
    small: Pair, trtexec: BuildRecipe, gpu: Gpu, tmp_path: Path
) -> None:
    bundle = bundle_engines(small.compiled, tmp_path / "b.tar", trtexec, dense=small.dense)
    unpack(bundle, tmp_path)
    folder = tmp_path / "patch-compile-bundle"
    subprocess.run(
        [shutil.which("bash") or "bash", folder / "run.sh"],
        env={**os.environ, "TRTEXEC": find_trtexec() or "", "ROUNDS": "5"},
        check=True,
        timeout=300,
    )
    found = import_results(folder / "results")
    assert found.gpu == gpu
    assert [model.error for model in found.models] == [""] * 3
    assert imported_bench(folder / "results", small.compiled).noise[TOKENS] >= 0.0


def test_the_doctor_finds_gpu_and_driver_working(sparse_gpu: Gpu) -> None:
    checks = {check.name: check for check in diagnose().checks}
    assert checks["GPU and driver"].state == "works"
    assert checks["CUDA of the driver"].state == "works", checks["CUDA of the driver"]


def test_rtx_tells_of_layers_where_there_is_a_gpu(
    small: Pair, gpu: Gpu, tmp_path: Path
) -> None:
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("package 'tensorrt_rtx' is not installed")
    recipe = BuildRecipe(engine="tensorrt_rtx", sm=(gpu.sm,), sequence=(1, 64, 64))
    try:
        result = api.build_engine(small.compiled, tmp_path / "m.engine", recipe)
    except PatchCompileError as error:
        pytest.skip(str(error))
    assert result.evidence.layers
    facts = json.loads((tmp_path / "m.engine.json").read_text("utf-8"))
    assert facts["gpu"] == gpu.name
