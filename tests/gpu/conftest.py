"""Models large enough for sparse kernels to win, and the GPU to build them on."""

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from patch_compile.compiler import compile_model
from patch_compile.piece_sites import find_pieces
from patch_compile.recipe import BuildRecipe
from patch_compile.runtimes.gpu import Gpu, find_gpus
from patch_compile.runtimes.trtexec_command import find_trtexec
from tests.support import Linear, linear_model, masks_of, random_mask, random_weight

# A rehearsal without a GPU needs no large products.
SIZE = int(os.environ.get("GPU_CHECK_SIZE", "4096"))
TOKENS = SIZE


@dataclass(frozen=True)
class Pair:
    """A float16 model of two products of one x, dense and compiled.

    `whole` is all 2:4; `halves` is 2:4 in every other half of its rows. The compiler joins
    the 2:4 parts of both in one product.
    """

    dense: Path
    compiled: Path

    @property
    def sparse(self) -> int:
        """How many 2:4 products the compiled graph has."""
        return sum(site.role == "sparse24" for site in find_pieces(self.compiled)[0])


def _pair(folder: Path, size: int) -> Pair:
    rng = np.random.default_rng(0)
    weights = {n: random_weight(rng, size, size, "float16") for n in ("whole", "halves")}
    linears = [Linear(name, weight) for name, weight in weights.items()]
    model = linear_model(linears, folder / "model.onnx", external=True)
    dense = {"whole": [[False]], "halves": [[True], [False]]}
    tiles = {"whole": "weight", "halves": f"band:{size // 2}"}
    masks = [
        random_mask(rng, f"{n}.weight", w, tiles[n], dense=np.array(dense[n]))
        for n, w in weights.items()
    ]
    return Pair(model, compile_model(model, masks_of(*masks)).save(folder / "out"))


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
    """Large enough for sparse kernels to win by every public measurement."""
    return _pair(tmp_path_factory.mktemp("pair"), SIZE)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """For what does not depend on kernels: its engines are quickly built."""
    return _pair(tmp_path_factory.mktemp("small"), 256)


def recipe_for(engine: str) -> BuildRecipe:
    """Kernels timed at as many tokens as features."""
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
