"""Engine builders by name: one file per backend, each with `build_engine`."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from patch_compile.errors import InternalError, RecipeError
from patch_compile.recipe import BuildRecipe

__all__ = ["BACKENDS", "EngineResult", "build_engine"]

Progress = Callable[[int, int, str], None]

# Modules, not functions: a backend is imported when it is asked for.
BACKENDS = {"tensorrt_rtx": "patch_compile.runtimes.tensorrt_rtx"}


@dataclass(frozen=True)
class EngineResult:
    """An engine that was built.

    Attributes:
        path: the engine.
        bytes: its size.
        seconds: the build took, start of the process included.
        sm: the architectures it was built for; empty if left to the builder.
        requested_sparse: sparse kernels were allowed; this says nothing of their use.
        chosen: what is known of the kernels chosen. No build without a GPU tells.
        version: of the builder.
        log: file with everything the builder said.
        model_sha256: of the .onnx file, without its external data.
    """

    path: Path
    bytes: int
    seconds: float
    sm: tuple[int, ...]
    requested_sparse: bool
    chosen: Literal["unknown"]
    version: str
    log: Path
    model_sha256: str


def build_engine(
    model: Path, engine: Path, recipe: BuildRecipe, progress: Progress | None = None
) -> EngineResult:
    """Builds an engine with the backend the recipe names.

    Args:
        model: the .onnx file; external data beside it.
        engine: file to write; `<name>.engine.json` and `<name>.engine.log` go beside it.
        recipe: see `BuildRecipe`.
        progress: called with (steps done, steps, what the builder is at).

    Raises:
        RecipeError: if the recipe names no backend.
        PatchCompileError: see the backend's `build_engine`.
    """
    backend = BACKENDS.get(recipe.engine)
    if backend is None:
        raise RecipeError(
            f"engine | is '{recipe.engine}', which builds nothing; choose one of "
            f"{', '.join(BACKENDS)}"
        )
    module = importlib.import_module(backend)
    result = module.build_engine(model, engine, recipe, progress)
    if not isinstance(result, EngineResult):
        raise InternalError(f"backend '{recipe.engine}' | returned {type(result)}")
    return result
