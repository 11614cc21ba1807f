"""Engines of TensorRT 10 and 11, built for the GPU at hand.

The two differ by what they lack, which the worker asks of the installed package: TensorRT 11
has no precision flags, as every network is strongly typed. Where 10 leaves a choice, the
graph's types are kept too, unless the recipe names others.

`SPARSE_WEIGHTS` is a permission: every product is timed with dense and 2:4 kernels, at the
best point of the ranges, and the faster is taken. What was taken is read from the log and from
the engine's inspector.
"""

from collections.abc import Callable
from pathlib import Path

from patch_compile._require import pip_install
from patch_compile.errors import RecipeError
from patch_compile.recipe import BuildRecipe
from patch_compile.runtimes._native import Package, build_native, check_installed
from patch_compile.runtimes.engines import EngineResult

__all__ = ["build_engine", "check_ready"]

Progress = Callable[[int, int, str], None]

_PACKAGE = Package(
    "tensorrt",
    "TensorRT",
    f"{pip_install('gpu', 'tensorrt')} on a machine with an NVIDIA GPU",
    on_gpu=True,
)


def build_engine(
    model: Path, engine: Path, recipe: BuildRecipe, progress: Progress | None = None
) -> EngineResult:
    """Builds an engine with TensorRT; see `build_native`.

    Raises:
        RecipeError: also for options of other backends.
    """
    check_ready(recipe)
    return build_native(_PACKAGE, model, engine, recipe, progress)


def check_ready(recipe: BuildRecipe) -> None:
    """Refuses what could not be built here, whatever the model.

    Raises:
        RecipeError: for options of other backends.
        RuntimeUnavailable: if TensorRT is missing.
    """
    if recipe.sm:
        raise RecipeError(
            f"sm | is {', '.join(map(str, recipe.sm))}; TensorRT builds for the GPU at hand; "
            "leave it out, or choose --engine tensorrt_rtx"
        )
    if recipe.flags:
        raise RecipeError(
            f"flags | are for trtexec, as in {recipe.flags[0]}; choose --engine trtexec"
        )
    check_installed(_PACKAGE)
