"""Engines of ONNX Runtime are written as models, or it is said why not."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from patch_compile.errors import RecipeError, RuntimeUnavailable
from patch_compile.recipe import BenchRecipe, BenchRuntime
from patch_compile.runtimes.ep_context import export_context
from tests.support import Linear, linear_model, random_weight, said


@pytest.fixture
def model(tmp_path: Path) -> Path:
    weight = random_weight(np.random.default_rng(0), 64, 64, "float16")
    return linear_model([Linear("a", weight)], tmp_path / "m.onnx")


@pytest.mark.parametrize("runtime", ["ort-cpu", "ort-cuda"])
def test_a_runtime_without_engines_is_refused(model: Path, runtime: BenchRuntime) -> None:
    with pytest.raises(RecipeError, match=r"builds no engines") as caught:
        export_context(model, model.with_name("c.onnx"), BenchRecipe(runtime=runtime))
    said(caught)


@pytest.mark.parametrize("runtime", ["ort-tensorrt", "ort-rtx"])
def test_without_the_provider_nothing_is_written(model: Path, runtime: BenchRuntime) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has GPU providers")
    with pytest.raises(RuntimeUnavailable, match=r"onnxruntime") as caught:
        export_context(model, model.with_name("c.onnx"), BenchRecipe(runtime=runtime))
    said(caught)
    assert [file.name for file in model.parent.iterdir()] == ["m.onnx"]


@pytest.mark.gpu
@pytest.mark.parametrize("runtime", ["ort-tensorrt", "ort-rtx"])
def test_a_context_is_one_engine(model: Path, runtime: BenchRuntime) -> None:
    try:
        path = export_context(
            model, model.with_name("c.onnx"), BenchRecipe(runtime=runtime, tokens=(1, 8))
        )
    except RuntimeUnavailable as error:
        pytest.skip(f"needs a GPU that ONNX Runtime can use: {error}")
    kinds = {node.op_type for node in onnx.load(path).graph.node}
    assert "EPContext" in kinds
    assert "MatMul" not in kinds
