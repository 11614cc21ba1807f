"""What `bench` asks of a runtime: open a model, feed it, time it.

A runtime that runs in one process a model (a command such as trtexec) answers `times` with
the runs of one such process.
"""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from patch_compile.errors import RecipeError
from patch_compile.recipe import BenchRecipe

__all__ = ["TIMERS", "ModelFacts", "TimedModel", "open_timed"]

# Modules, not functions: a runtime is imported when it is asked for. Each has a function
# `open_timed(model, recipe, cache)` that returns a TimedModel.
_ORT = "patch_compile.runtimes.ort_timing"
TIMERS = {
    "ort-cpu": _ORT,
    "ort-cuda": _ORT,
    "ort-tensorrt": _ORT,
    "ort-rtx": _ORT,
    "trtexec": "patch_compile.runtimes.trtexec_timing",
}


@dataclass(frozen=True)
class ModelFacts:
    """What is known of an open model beside its times.

    Attributes:
        version: of the runtime.
        device: name of the GPU or processor; `unknown` where nobody tells.
        build_seconds: it took to be ready, engines and all.
        peak_bytes: most memory its process ever held on the host; None if unknown.
        nodes: after the runtime's own rewrites, by the device or provider that runs them;
            None if unknown.
        engine_bytes: size of the engine that was built; None where there is none, or where
            the runtime keeps it to itself.
        device_bytes: what the model takes of the GPU's memory: for trtexec an engine with one
            context, by its builder's log; for ONNX Runtime the whole process, by the driver;
            None if unknown.
    """

    version: str
    device: str
    build_seconds: float
    peak_bytes: int | None
    nodes: dict[str, int] | None
    engine_bytes: int | None = None
    device_bytes: int | None = None


class TimedModel(Protocol):
    """One model, open in one runtime."""

    def feed(self, tokens: int) -> None:
        """Makes the inputs of the runs to come: the recipe's batch of so many tokens."""
        ...

    def times(self, runs: int) -> list[float]:
        """Runs the model so often and returns the seconds of each run."""
        ...

    def facts(self) -> ModelFacts:
        """Returns what is known of it by now."""
        ...

    def close(self) -> None:
        """Gives everything back."""
        ...


def open_timed(model: Path, recipe: BenchRecipe, cache: Path | None = None) -> TimedModel:
    """Opens a model in the runtime that the recipe names.

    Args:
        model: the .onnx file; external data beside it.
        recipe: see `BenchRecipe`.
        cache: folder that keeps engines and timings for a later run.

    Raises:
        RecipeError: if no such runtime is known.
        PatchCompileError: see the runtime's `open_timed`.
    """
    timer = TIMERS.get(recipe.runtime)
    if timer is None:
        raise RecipeError(
            f"runtime | is '{recipe.runtime}', which times nothing; choose one of "
            f"{', '.join(TIMERS)}"
        )
    opened: TimedModel = importlib.import_module(timer).open_timed(model, recipe, cache)
    return opened
