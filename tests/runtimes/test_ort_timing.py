"""Models run in processes of their own, whose ends are told in one line."""

import os
import signal
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from patch_compile.errors import (
    ModelError,
    PatchCompileError,
    RecipeError,
    RuntimeUnavailable,
)
from patch_compile.recipe import BenchRecipe, BenchRuntime
from patch_compile.runtimes.ort_timing import OrtProcess, open_timed
from patch_compile.runtimes.timing import open_timed as open_by_name
from tests.support import Linear, linear_model, random_weight, said

RECIPE = BenchRecipe(tokens=(1, 4), threads=1, timeout=60.0)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    return linear_model([Linear("a", random_weight(rng, 6, 8))], tmp_path / "m.onnx")


@pytest.fixture
def opened(model: Path) -> OrtProcess:
    return open_timed(model, RECIPE)


def test_runs_are_timed_one_by_one(opened: OrtProcess) -> None:
    for tokens in RECIPE.tokens:
        opened.feed(tokens)
        seconds = opened.times(5)
        assert len(seconds) == 5
        assert all(0.0 < s < 10.0 for s in seconds)
    opened.close()


def test_facts_are_those_of_the_session(opened: OrtProcess) -> None:
    facts = opened.facts()
    opened.close()
    assert facts.version == onnxruntime.__version__
    assert 0.0 < facts.build_seconds < 60.0
    assert facts.nodes == {"CPUExecutionProvider": 1}
    # An interpreter with numpy and onnxruntime; not the process that runs the tests.
    assert facts.peak_bytes is not None
    assert 2e7 < facts.peak_bytes < 3e8


def test_close_ends_the_process(opened: OrtProcess) -> None:
    opened.close()
    assert opened._process.poll() is not None


def test_a_missing_model_is_told_before_a_process_starts(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is not a file") as caught:
        open_timed(tmp_path / "no.onnx", RECIPE)
    said(caught)


def test_errors_cross_the_process(model: Path) -> None:
    model.write_bytes(b"\x01garbage")
    with pytest.raises(ModelError, match=r"m\.onnx' \| ") as caught:
        open_timed(model, RECIPE)
    said(caught)


def test_a_fixed_sequence_takes_no_other_tokens(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    linear = Linear("a", random_weight(rng, 6, 8))
    opened = open_timed(linear_model([linear], tmp_path / "m.onnx", lead=(4,)), RECIPE)
    opened.feed(4)
    assert opened.times(1)
    with pytest.raises(
        RecipeError, match=r"tokens \| are 7 at batch 1, but model .* fixed"
    ) as caught:
        opened.feed(7)
    opened.close()
    said(caught)


def test_a_crash_is_told_in_one_line(opened: OrtProcess) -> None:
    os.kill(opened._process.pid, signal.SIGKILL)
    with pytest.raises(RuntimeUnavailable, match=r"ended with exit code -9") as caught:
        opened.facts()
    opened.close()
    said(caught)


def test_a_hang_is_told_in_one_line(opened: OrtProcess) -> None:
    os.kill(opened._process.pid, signal.SIGSTOP)
    opened._timeout = 0.2
    with pytest.raises(RuntimeUnavailable, match=r"did not answer in 0\.2 seconds") as caught:
        opened.facts()
    opened.close()
    said(caught)


@pytest.mark.parametrize("runtime", ["ort-cuda", "ort-tensorrt", "ort-rtx"])
def test_a_provider_that_is_not_there_is_never_replaced(
    model: Path, runtime: BenchRuntime
) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has GPU providers")
    with pytest.raises(RuntimeUnavailable, match=r"onnxruntime") as caught:
        open_by_name(model, BenchRecipe(runtime=runtime))
    said(caught)


@pytest.mark.gpu
@pytest.mark.parametrize("runtime", ["ort-cuda", "ort-tensorrt", "ort-rtx"])
def test_a_gpu_provider_runs_the_products(
    tmp_path: Path, rng: np.random.Generator, runtime: BenchRuntime
) -> None:
    weight = random_weight(rng, 256, 256, "float16")
    path = linear_model([Linear("a", weight)], tmp_path / "m.onnx")
    recipe = BenchRecipe(runtime=runtime, tokens=(1, 64))
    try:
        opened = open_timed(path, recipe, tmp_path)
    except PatchCompileError as error:
        pytest.skip(f"needs a GPU that ONNX Runtime can use: {error}")
    opened.feed(64)
    seconds = opened.times(3)
    nodes = opened.facts().nodes
    opened.close()
    assert min(seconds) > 0.0
    assert nodes is None or "CPUExecutionProvider" not in nodes
