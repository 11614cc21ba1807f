"""Models large enough for sparse kernels to win, and the GPU to build them on."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from patch_compile.compiler import compile_model
from patch_compile.recipe import BuildRecipe
from patch_compile.runtimes.gpu import Gpu, find_gpus
from patch_compile.runtimes.trtexec_command import find_trtexec
from tests.support import Linear, linear_model, masks_of, random_mask, random_weight

SIZE = 4096
TOKENS = 4096


@dataclass(frozen=True)
class Pair:
    """A float16 model of two products (4096, 4096), dense and compiled.

    `whole` is all 2:4; `halves` is 2:4 in every other band of 2048 rows.
    """

    dense: Path
    compiled: Path


@pytest.fixture(scope="session")
def gpu() -> Gpu:
    found = find_gpus()
    if not found:
        pytest.skip("nvidia-smi finds no NVIDIA GPU")
    return found[0]


@pytest.fixture(scope="session")
def sparse_gpu(gpu: Gpu) -> Gpu:
    if gpu.sm < 80:
        pytest.skip(f"{gpu.name} (SM {gpu.sm}) has no sparse tensor cores")
    return gpu


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("pair")
    rng = np.random.default_rng(0)
    weights = {n: random_weight(rng, SIZE, SIZE, "float16") for n in ("whole", "halves")}
    linears = [Linear(name, weight) for name, weight in weights.items()]
    model = linear_model(linears, folder / "model.onnx", external=True)
    bands = np.array([[True], [False]])
    masks = masks_of(
        random_mask(
            rng, "whole.weight", weights["whole"], "weight", dense=np.array([[False]])
        ),
        random_mask(rng, "halves.weight", weights["halves"], "band:2048", dense=bands),
    )
    return Pair(model, compile_model(model, masks).save(folder / "out"))


def recipe_for(engine: str) -> BuildRecipe:
    """Kernels timed at 4096 tokens, where sparse ones win by every public measurement."""
    return BuildRecipe(
        engine=engine,  # type: ignore[arg-type]  # a name of ours
        batch=(1, 1, 1),
        sequence=(1, TOKENS, TOKENS),
        timeout=240.0,
    )


@pytest.fixture(scope="session")
def tensorrt() -> BuildRecipe:
    if importlib.util.find_spec("tensorrt") is None:
        pytest.skip("package 'tensorrt' is not installed")
    return recipe_for("tensorrt")


@pytest.fixture(scope="session")
def trtexec() -> BuildRecipe:
    if find_trtexec() is None:
        pytest.skip("program 'trtexec' is not found")
    return recipe_for("trtexec")
