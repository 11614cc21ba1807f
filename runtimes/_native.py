"""What the backends of TensorRT's Python packages share: one build in a worker process."""

import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from patch_compile.errors import ModelError, PatchCompileError, RuntimeUnavailable
from patch_compile.io.atomic import staged_folder
from patch_compile.recipe import BuildRecipe
from patch_compile.runtimes._job import Job, Outcome, read_outcome, read_progress, write_job
from patch_compile.runtimes._process import death, run_logged, tail
from patch_compile.runtimes.engine_file import Built, record_engine, sha256_of
from patch_compile.runtimes.engines import EngineResult
from patch_compile.runtimes.evidence import Evidence
from patch_compile.runtimes.gpu import Gpu, find_gpus
from patch_compile.runtimes.layer_info import read_layer_file
from patch_compile.runtimes.trtexec_log import log_lines, read_memory, read_sparsity

__all__ = ["Package", "build_native"]

Progress = Callable[[int, int, str], None]

_WORKER = "patch_compile.runtimes._worker"


@dataclass(frozen=True)
class Package:
    """A Python package that builds engines.

    Attributes:
        name: to import.
        product: as messages call it.
        install: the command that brings it.
        on_gpu: it builds on the GPU at hand, so that timings can be kept, and the engine be
            asked for its layers even where the driver does not tell of a GPU, as on Jetson.
    """

    name: str
    product: str
    install: str
    on_gpu: bool


def build_native(
    package: Package,
    model: Path,
    engine: Path,
    recipe: BuildRecipe,
    progress: Progress | None,
) -> EngineResult:
    """Builds an engine in a subprocess; it appears whole or not at all.

    Args:
        package: that builds.
        model: the .onnx file; external data beside it.
        engine: file to write. `<name>.engine.json`, `<name>.engine.log` and, where a GPU
            tells of its layers, `<name>.engine.layers.json` go beside it; a failed build
            leaves the log alone.
        recipe: architectures, flags, ranges and time limit.
        progress: called with (steps done, steps, what the builder is at).

    Raises:
        RecipeError: if the installed version lacks what was asked for, or the ranges do not
            fit.
        ModelError: if the model is missing, or cannot be parsed or built.
        RuntimeUnavailable: if the package is missing or broken, crashes, or takes longer
            than the recipe allows.
    """
    check_installed(package)
    if not model.is_file():
        raise ModelError(f"model '{model}' | is not a file; give the path of an .onnx file")
    started = time.monotonic()
    log = engine.with_suffix(".engine.log")
    gpu = next(iter(find_gpus()), None)
    with staged_folder(engine.parent) as stage:
        staged = stage / engine.name
        layers = staged.with_suffix(".engine.layers.json")
        built = Built(staged, engine, model, sha256_of(model), recipe, started, log)
        asked = layers if package.on_gpu or gpu is not None else None
        job = _job(package, model, staged, asked, recipe)
        outcome = _run(package, job, log, recipe.timeout, progress)
        return record_engine(
            built,
            _evidence(recipe, outcome, gpu, log, layers),
            sm=job.sm or (() if gpu is None else (gpu.sm,)),
            flags=outcome.flags,
            profiles=outcome.profiles,
        )


def check_installed(package: Package) -> None:
    """Looks for the package, without loading it.

    Raises:
        RuntimeUnavailable: if it is missing.
    """
    # Not `require`: the native code stays out of this process.
    if importlib.util.find_spec(package.name) is None:
        raise RuntimeUnavailable(
            f"package '{package.name}' | is not installed; this step needs it: "
            f"{package.install}"
        )


def _job(
    package: Package, model: Path, engine: Path, layers: Path | None, recipe: BuildRecipe
) -> Job:
    # The stage lies inside the engine's folder, where the cache is kept.
    cache = engine.parent.parent / recipe.timing_cache
    kept = package.on_gpu and recipe.timing_cache
    return Job(
        package=package.name,
        model=str(model.absolute()),
        engine=str(engine.absolute()),
        layers="" if layers is None else str(layers.absolute()),
        sm=recipe.sm,
        sparse=recipe.sparse,
        strict_nans=recipe.strict_nans,
        refit=recipe.refit,
        precision=recipe.precision,
        batch=recipe.batch,
        sequence=recipe.sequence,
        timing_cache=str(cache.absolute()) if kept else "",
        optimization_level=recipe.optimization_level,
        workspace=recipe.workspace,
        hardware=recipe.hardware,
    )


def _run(
    package: Package, job: Job, log: Path, timeout: float, progress: Progress | None
) -> Outcome:
    with tempfile.TemporaryDirectory(prefix="patch-compile-") as name:
        folder = Path(name)
        write_job(folder, job)
        code = run_logged(
            [sys.executable, "-m", _WORKER, str(folder)],
            log,
            subject=package.product,
            timeout=timeout,
            show=lambda: _show(folder, progress),
            # In a folder of its own: `-m` looks for modules in the working folder first.
            cwd=folder,
            environment=_environment(),
        )
        outcome = read_outcome(folder)
    if outcome is None:
        raise RuntimeUnavailable(
            f"{package.product} | {death(code)}; last words: {tail(log)}; full log: '{log}'"
        )
    if isinstance(outcome, PatchCompileError):
        raise type(outcome)(f"{outcome}; full log: '{log}'")
    return outcome


def _environment() -> dict[str, str]:
    """The worker imports from where this process does, installed or not."""
    paths = os.pathsep.join(os.path.abspath(path) for path in sys.path)
    return {**os.environ, "PYTHONPATH": paths}


def _show(folder: Path, progress: Progress | None) -> None:
    state = read_progress(folder)
    if progress is not None and state is not None:
        progress(*state)


def _evidence(
    recipe: BuildRecipe, outcome: Outcome, gpu: Gpu | None, log: Path, layers: Path
) -> Evidence:
    # An engine may be for another GPU than that of this machine.
    here = gpu if gpu is not None and recipe.sm in ((), (gpu.sm,)) else None
    return Evidence(
        backend=recipe.engine,
        version=outcome.version,
        device="" if here is None else here.name,
        sm=here.sm if here is not None else next(iter(recipe.sm), None),
        requested=recipe.sparse,
        sparsity=read_sparsity(log_lines(log)),
        layers=read_layer_file(layers),
        symbols=tuple(outcome.symbols.items()),
        memory=replace(read_memory(log_lines(log)), context=outcome.context),
    )
