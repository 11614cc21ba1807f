"""What we say of engines, put to a GPU. `scripts/gpu_check.sh` prints a verdict a test."""

import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from patch_compile import api
from patch_compile.errors import PatchCompileError, RecipeError
from patch_compile.recipe import BuildRecipe
from patch_compile.results import bundle_engines, import_results
from patch_compile.runtimes.doctor import diagnose
from patch_compile.runtimes.engine_file import check_engine
from patch_compile.runtimes.engines import EngineResult
from patch_compile.runtimes.gpu import Gpu
from patch_compile.runtimes.onnxruntime import open_session, run_session
from patch_compile.runtimes.trtexec_command import find_trtexec
from tests.gpu.conftest import SIZE, Pair

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
    assert [weight.unknown for weight in joined.weights] == [0, 0], joined.to_json()


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
    pair: Pair, tensorrt: BuildRecipe, gpu: Gpu, tmp_path: Path
) -> None:
    first = api.build_engine(pair.compiled, tmp_path / "m.engine", tensorrt)
    assert (tmp_path / "timing.cache").stat().st_size > 0
    second = api.build_engine(pair.compiled, tmp_path / "m.engine", tensorrt)
    assert "started anew" not in second.log.read_text("utf-8", "replace")
    assert second.seconds <= first.seconds


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
    pair: Pair, tensorrt: BuildRecipe, sparse_gpu: Gpu, tmp_path: Path, changes: dict[str, Any]
) -> None:
    asked = replace(tensorrt, **changes)
    assert api.build_engine(pair.compiled, tmp_path / "m.engine", asked).bytes > 0


def test_tensorrts_precision_flags_are_taken_by_10_and_refused_by_11(
    pair: Pair, tensorrt: BuildRecipe, gpu: Gpu, tmp_path: Path
) -> None:
    asked = replace(tensorrt, precision=("fp16",))
    module = importlib.import_module("tensorrt")
    if hasattr(module.BuilderFlag, "FP16"):
        assert api.build_engine(pair.compiled, tmp_path / "m.engine", asked).bytes > 0
        return
    with pytest.raises(RecipeError, match=r"precision \| asks for fp16"):
        api.build_engine(pair.compiled, tmp_path / "m.engine", asked)


def test_an_engine_passes_the_check_before_use_on_the_gpu_it_was_built_on(
    pair: Pair, built: EngineResult, gpu: Gpu
) -> None:
    check_engine(built.path, pair.compiled, version=built.version, gpu=gpu)


def test_tensorrts_engine_computes_what_onnxruntime_computes(
    pair: Pair, built: EngineResult, gpu: Gpu
) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch has no CUDA")
    x = np.random.default_rng(1).standard_normal((1, 64, SIZE)).astype(np.float16)
    expected = run_session(open_session(pair.compiled), {"x": x})
    found = _run_engine(torch, built.path, x)
    for name, value in expected.items():
        error = np.linalg.norm(found[name] - value.astype(np.float32))
        # fp16 products over 4096 terms, summed in another order.
        assert error / np.linalg.norm(value.astype(np.float32)) < 2e-2, name


def _run_engine(torch: Any, path: Path, x: Any) -> dict[str, Any]:
    trt = importlib.import_module("tensorrt")
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    context = engine.create_execution_context()
    given = torch.from_numpy(x).cuda()
    context.set_input_shape("x", tuple(given.shape))
    outputs = {}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        if name != "x":
            shape = tuple(context.get_tensor_shape(name))
            outputs[name] = torch.empty(shape, dtype=torch.float16, device="cuda")
        context.set_tensor_address(name, (given if name == "x" else outputs[name]).data_ptr())
    assert context.execute_async_v3(torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()
    return {name: value.float().cpu().numpy() for name, value in outputs.items()}


def test_trtexecs_log_tells_what_is_eligible_and_chosen(timed: EngineResult) -> None:
    assert timed.evidence.sparsity.found is not None
    assert timed.evidence.sparsity.chose is not None


def test_trtexec_finds_every_sparse_product_of_ours_eligible(
    timed: EngineResult, sparse_gpu: Gpu
) -> None:
    assert timed.evidence.sparsity.found == 2


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


def test_the_compiled_engine_is_not_slower_than_the_dense_one(
    pair: Pair, timed: EngineResult, trtexec: BuildRecipe, sparse_gpu: Gpu, tmp_path: Path
) -> None:
    dense = api.build_engine(pair.dense, tmp_path / "dense.engine", trtexec)
    ours, theirs = (result.evidence.performance for result in (timed, dense))
    assert ours is not None
    assert theirs is not None
    assert ours.compute is not None
    assert theirs.compute is not None
    assert ours.compute.median < theirs.compute.median


def test_a_bundle_runs_on_this_machine_and_its_results_are_read(
    pair: Pair, trtexec: BuildRecipe, gpu: Gpu, tmp_path: Path
) -> None:
    bundle = bundle_engines(pair.compiled, tmp_path / "b.tar", trtexec, dense=pair.dense)
    with tarfile.open(bundle) as archive:
        archive.extractall(tmp_path, filter="data")
    folder = tmp_path / "patch-compile-bundle"
    subprocess.run(
        [shutil.which("bash") or "bash", folder / "run.sh"],
        env={**os.environ, "TRTEXEC": find_trtexec() or "", "ROUNDS": "1"},
        check=True,
        timeout=400,
    )
    found = import_results(folder / "results")
    assert found.gpu == gpu
    assert [model.error for model in found.models] == ["", ""]
    assert all(model.median for model in found.models)


def test_the_doctor_finds_gpu_and_driver_working(sparse_gpu: Gpu) -> None:
    checks = {check.name: check for check in diagnose().checks}
    assert checks["GPU and driver"].state == "works"
    assert checks["CUDA of the driver"].state == "works", checks["CUDA of the driver"]


def test_rtx_tells_of_layers_where_there_is_a_gpu(
    pair: Pair, gpu: Gpu, tmp_path: Path
) -> None:
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("package 'tensorrt_rtx' is not installed")
    recipe = BuildRecipe(engine="tensorrt_rtx", sm=(gpu.sm,), sequence=(1, 64, 64))
    try:
        result = api.build_engine(pair.compiled, tmp_path / "m.engine", recipe)
    except PatchCompileError as error:
        pytest.skip(str(error))
    assert result.evidence.layers
    facts = json.loads((tmp_path / "m.engine.json").read_text("utf-8"))
    assert facts["gpu"] == gpu.name
