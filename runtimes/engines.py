"""Engine builders by name: a file a backend, each with `build_engine` and `check_ready`."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal

from patch_compile.errors import InternalError, RecipeError
from patch_compile.recipe import BuildRecipe
from patch_compile.runtimes.evidence import Evidence

__all__ = ["BACKENDS", "EngineResult", "build_engine", "check_engine", "engine_result"]

Progress = Callable[[int, int, str], None]

# Modules, not functions: a backend is imported when it is asked for.
BACKENDS = {
    "tensorrt": "patch_compile.runtimes.tensorrt",
    "tensorrt_rtx": "patch_compile.runtimes.tensorrt_rtx",
    "trtexec": "patch_compile.runtimes.trtexec",
}


@dataclass(frozen=True)
class EngineResult:
    """An engine that was built.

    Attributes:
        path: the engine.
        bytes: its size.
        seconds: the build took, start of the process included.
        sm: the architectures it was built for; empty if left to the builder.
        requested_sparse: sparse kernels were allowed; this says nothing of their use.
        chosen: layers with a sparse kernel, told by the build log or by the inspector; no
            build without a GPU tells.
        version: of the builder.
        log: file with everything the builder said.
        model_sha256: of the .onnx file, without its external data.
        evidence: all that log, inspector and timings tell.
    """

    path: Path
    bytes: int
    seconds: float
    sm: tuple[int, ...]
    requested_sparse: bool
    chosen: int | Literal["unknown"]
    version: str
    log: Path
    model_sha256: str
    evidence: Evidence


def engine_result(
    engine: Path,
    evidence: Evidence,
    *,
    size: int,
    seconds: float,
    sm: tuple[int, ...],
    log: Path,
    digest: str,
) -> EngineResult:
    """Returns the result of a build, whose facts the evidence tells.

    Args:
        engine: the engine's path.
        evidence: what is known of it.
        size: of the engine, in bytes.
        seconds: the build took.
        sm: the architectures it was built for.
        log: file with everything the builder said.
        digest: of the .onnx file.
    """
    return EngineResult(
        path=engine,
        bytes=size,
        seconds=seconds,
        sm=sm,
        requested_sparse=evidence.requested,
        chosen=_chosen(evidence),
        version=evidence.version,
        log=log,
        model_sha256=digest,
        evidence=evidence,
    )


def _chosen(evidence: Evidence) -> int | Literal["unknown"]:
    """The log's count; else that of the kernels' names, where all kernels are named."""
    if evidence.sparsity.chose is not None:
        return evidence.sparsity.chose
    sparse = sum(layer.sparse for layer in evidence.layers)
    return sparse or "unknown"


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
    result = _backend(recipe).build_engine(model, engine, recipe, progress)
    if not isinstance(result, EngineResult):
        raise InternalError(f"backend '{recipe.engine}' | returned {type(result)}")
    return result


def check_engine(recipe: BuildRecipe) -> None:
    """Refuses, before there is a model, what the backend could not build here of any.

    Raises:
        RecipeError: if the recipe names no backend, or asks for what it has not.
        RuntimeUnavailable: if the backend is missing.
    """
    _backend(recipe).check_ready(recipe)


def _backend(recipe: BuildRecipe) -> ModuleType:
    backend = BACKENDS.get(recipe.engine)
    if backend is None:
        raise RecipeError(
            f"engine | is '{recipe.engine}', which builds nothing; choose one of "
            f"{', '.join(BACKENDS)}"
        )
    return importlib.import_module(backend)
