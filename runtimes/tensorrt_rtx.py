"""Engines of TensorRT-RTX, which builds without a GPU.

A build here proves that the graph compiles. It never proves that sparse kernels are used: on
a CPU the flag has no effect, and nothing can be run or inspected.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from patch_compile._require import pip_install
from patch_compile.errors import RecipeError
from patch_compile.recipe import BuildRecipe
from patch_compile.runtimes._native import Package, build_native, check_installed
from patch_compile.runtimes.engines import EngineResult

__all__ = ["DEFAULT_SM", "build_engine", "check_ready"]

Progress = Callable[[int, int, str], None]

# The oldest architecture with sparse tensor cores that consumer cards have.
DEFAULT_SM = (86,)

_PACKAGE = Package("tensorrt_rtx", "TensorRT-RTX", pip_install("rtx"), on_gpu=False)


def build_engine(
    model: Path, engine: Path, recipe: BuildRecipe, progress: Progress | None = None
) -> EngineResult:
    """Builds an engine with TensorRT-RTX; see `build_native`.

    Raises:
        RecipeError: also for options that TensorRT-RTX has not.
    """
    check_ready(recipe)
    targeted = replace(recipe, sm=recipe.sm or DEFAULT_SM)
    return build_native(_PACKAGE, model, engine, targeted, progress)


def check_ready(recipe: BuildRecipe) -> None:
    """Refuses what could not be built here, whatever the model.

    Raises:
        RecipeError: for options that TensorRT-RTX has not.
        RuntimeUnavailable: if TensorRT-RTX is missing.
    """
    if recipe.hardware != "same":
        raise RecipeError(
            f"hardware | is '{recipe.hardware}'; TensorRT-RTX builds for the architectures in "
            "--sm; name several there"
        )
    if recipe.flags:
        raise RecipeError(
            f"flags | are for trtexec, as in {recipe.flags[0]}; choose --engine trtexec"
        )
    check_installed(_PACKAGE)
