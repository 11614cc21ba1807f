"""Engines of TensorRT-RTX, which builds without a GPU.

A build here proves that the graph compiles. It never proves that sparse kernels are used: on
a CPU the flag has no effect, and nothing can be run or inspected.
"""

import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from patch_compile.errors import ModelError, PatchCompileError, RuntimeUnavailable
from patch_compile.io.atomic import staged_folder
from patch_compile.recipe import BuildRecipe
from patch_compile.runtimes._rtx_job import (
    Job,
    Outcome,
    read_outcome,
    read_progress,
    write_job,
)
from patch_compile.runtimes.engines import EngineResult

__all__ = ["build_engine"]

Progress = Callable[[int, int, str], None]

_WORKER = "patch_compile.runtimes._rtx_worker"
_POLL = 0.1
_LAST_LINES = 3


def build_engine(
    model: Path, engine: Path, recipe: BuildRecipe, progress: Progress | None = None
) -> EngineResult:
    """Builds an engine in a subprocess; it appears whole or not at all.

    Args:
        model: the .onnx file; external data beside it.
        engine: file to write. `<name>.engine.json` (what was asked for and the profiles) and
            `<name>.engine.log` go beside it; a failed build leaves the log alone.
        recipe: architectures (none for a portable engine), sparsity, ranges and time limit.
        progress: called with (steps done, steps, what TensorRT-RTX is at).

    Raises:
        RecipeError: if the installed version lacks an architecture, or the ranges do not
            fit.
        ModelError: if the model is missing, or TensorRT-RTX cannot parse or build it.
        RuntimeUnavailable: if the package is missing or broken, crashes, or takes longer
            than the recipe allows.
    """
    _check_installed()
    if not model.is_file():
        raise ModelError(f"model '{model}' | is not a file; give the path of an .onnx file")
    started = time.monotonic()
    log = engine.with_suffix(".engine.log")
    with staged_folder(engine.parent) as stage:
        digest = _sha256(model)
        job = _job(model, stage / engine.name, recipe)
        outcome = _run(job, log, recipe.timeout, progress)
        result = EngineResult(
            path=engine,
            bytes=(stage / engine.name).stat().st_size,
            seconds=time.monotonic() - started,
            sm=recipe.sm,
            requested_sparse=recipe.sparse,
            chosen="unknown",
            version=outcome.version,
            log=log,
            model_sha256=digest,
        )
        facts = json.dumps(_facts(model, result, outcome), indent=2)
        (stage / engine.name).with_suffix(".engine.json").write_text(facts + "\n")
    return result


def _check_installed() -> None:
    # Not `require`: the native code stays out of this process.
    if importlib.util.find_spec("tensorrt_rtx") is None:
        raise RuntimeUnavailable(
            "package 'tensorrt_rtx' | is not installed; this step needs it: "
            "pip install 'patch-compile[rtx]'"
        )


def _job(model: Path, engine: Path, recipe: BuildRecipe) -> Job:
    return Job(
        model=str(model.absolute()),
        engine=str(engine.absolute()),
        sm=recipe.sm,
        sparse=recipe.sparse,
        batch=recipe.batch,
        sequence=recipe.sequence,
    )


def _run(job: Job, log: Path, timeout: float, progress: Progress | None) -> Outcome:
    with tempfile.TemporaryDirectory(prefix="patch-compile-") as name:
        folder = Path(name)
        write_job(folder, job)
        code = _worker(folder, log, timeout, progress)
        outcome = read_outcome(folder)
    if outcome is None:
        raise RuntimeUnavailable(
            f"TensorRT-RTX | {_death(code)}; last words: {_tail(log)}; full log: '{log}'"
        )
    if isinstance(outcome, PatchCompileError):
        raise type(outcome)(f"{outcome}; full log: '{log}'")
    return outcome


def _worker(folder: Path, log: Path, timeout: float, progress: Progress | None) -> int:
    command = [sys.executable, "-m", _WORKER, str(folder)]
    with (
        log.open("wb") as output,
        # In a folder of its own: `-m` looks for modules in the working folder first.
        subprocess.Popen(
            command, cwd=folder, env=_environment(), stdout=output, stderr=output
        ) as process,
    ):
        try:
            return _wait(process, folder, timeout, progress)
        except subprocess.TimeoutExpired as error:
            raise RuntimeUnavailable(
                f"TensorRT-RTX | did not finish in {timeout} seconds and was stopped; give "
                f"a longer time-out; last words: {_tail(log)}; full log: '{log}'"
            ) from error
        finally:
            process.kill()


def _environment() -> dict[str, str]:
    """The worker imports from where this process does, installed or not."""
    paths = os.pathsep.join(os.path.abspath(path) for path in sys.path)
    return {**os.environ, "PYTHONPATH": paths}


def _wait(
    process: subprocess.Popen[bytes], folder: Path, timeout: float, progress: Progress | None
) -> int:
    """Returns the exit code; raises TimeoutExpired when the time is over."""
    deadline = time.monotonic() + timeout
    while True:
        left = max(0.0, deadline - time.monotonic())
        try:
            code = process.wait(min(_POLL, left))
        except subprocess.TimeoutExpired:
            _show(folder, progress)
            if left <= _POLL:
                raise
        else:
            _show(folder, progress)
            return code


def _show(folder: Path, progress: Progress | None) -> None:
    state = read_progress(folder)
    if progress is not None and state is not None:
        progress(*state)


def _death(code: int) -> str:
    if code >= 0:
        return f"failed with exit code {code}"
    name = signal.Signals(-code).name
    hint = ", often for lack of memory" if name == "SIGKILL" else ""
    return f"was ended by {name}{hint}"


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    said = [" ".join(line.split()) for line in lines if line.strip()]
    return " / ".join(said[-_LAST_LINES:]) or "none"


def _sha256(file: Path) -> str:
    total = hashlib.sha256()
    with file.open("rb") as stream:
        for block in iter(partial(stream.read, 2**20), b""):
            total.update(block)
    return total.hexdigest()


def _facts(model: Path, result: EngineResult, outcome: Outcome) -> dict[str, object]:
    """What `<name>.engine.json` holds; no time, so that equal builds write equal files."""
    return {
        "backend": "tensorrt_rtx",
        "version": result.version,
        "model": model.name,
        "model_sha256": result.model_sha256,
        "bytes": result.bytes,
        "sm": list(result.sm),
        "flags": list(outcome.flags),
        "profiles": outcome.profiles,
        "sparsity": {"requested": result.requested_sparse, "chosen": result.chosen},
    }
