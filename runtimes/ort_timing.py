"""Times models on ONNX Runtime, each in a process of its own.

A model's peak memory is that of its process, and native code that crashes or hangs is told in
one line.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from patch_compile import errors
from patch_compile._require import pip_install
from patch_compile.errors import ModelError, RecipeError, RuntimeUnavailable
from patch_compile.recipe import BenchRecipe
from patch_compile.runtimes.timing import ModelFacts

__all__ = ["OrtProcess", "open_timed"]

_WORKER = "patch_compile.runtimes._ort_worker"
_ERRORS = {kind.__name__: kind for kind in (ModelError, RecipeError, RuntimeUnavailable)}
_MISSING = re.compile(r"(lib[\w.+-]+\.so[\w.]*): cannot open shared object file")
_TAIL = 300


def open_timed(model: Path, recipe: BenchRecipe, cache: Path | None = None) -> "OrtProcess":
    """Opens a model in a new process.

    Args:
        model: the .onnx file; external data beside it.
        recipe: its runtime, threads, batch and tokens.
        cache: folder of engines and timings that TensorRT providers keep.

    Raises:
        ModelError: if the model is missing or damaged, or the provider cannot run it.
        RuntimeUnavailable: if onnxruntime or a provider is missing or broken, takes no node,
            crashes, or takes longer than the recipe allows.
    """
    # Not `require`: the native code stays out of this process.
    if importlib.util.find_spec("onnxruntime") is None:
        raise RuntimeUnavailable(
            "package 'onnxruntime' | is not installed; this step needs it: "
            f"{pip_install('cpu')}"
        )
    if not model.is_file():
        raise ModelError(f"model '{model}' | is not a file; give the path of an .onnx file")
    process = OrtProcess(model, recipe.timeout)
    try:
        process.ask(
            model=str(model.absolute()),
            recipe=asdict(recipe),
            cache=None if cache is None else str(cache.absolute()),
        )
    except errors.PatchCompileError:
        process.close()
        raise
    return process


class OrtProcess:
    """One model in a process of its own; see `TimedModel`."""

    def __init__(self, model: Path, timeout: float) -> None:
        self._model = model
        self._timeout = timeout
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `close`
        self._process = subprocess.Popen(
            [sys.executable, "-m", _WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=_environment(),
            # `-m` looks for modules in the working folder first.
            cwd=tempfile.gettempdir(),
            text=True,
            encoding="utf-8",
        )

    def feed(self, tokens: int) -> None:
        """Makes the inputs of the runs to come."""
        self.ask(name="feed", value=tokens)

    def times(self, runs: int) -> list[float]:
        """Returns the seconds of so many runs."""
        seconds: list[float] = self.ask(name="times", value=runs)
        return seconds

    def facts(self) -> ModelFacts:
        """Returns what is known by now."""
        return ModelFacts(**self.ask(name="facts", value=0))

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()
        self._log.close()

    def ask(self, **request: Any) -> Any:
        """Sends a request and waits for its answer, for as long as the recipe allows.

        Raises:
            PatchCompileError: what the process answers.
            RuntimeUnavailable: if the process ends or does not answer.
        """
        late = threading.Event()
        watch = threading.Timer(self._timeout, self._stop, (late,))
        watch.start()
        try:
            line = self._exchange(json.dumps(request) + "\n")
        finally:
            watch.cancel()
        if line:
            return self._answered(json.loads(line))
        raise RuntimeUnavailable(
            f"model '{self._model}' | its onnxruntime process "
            f"{self._end(late.is_set())}; last words: {self._said()[-_TAIL:] or 'none'}"
        )

    def _exchange(self, request: str) -> str:
        source, target = self._process.stdin, self._process.stdout
        if source is None or target is None:
            raise errors.InternalError("process | was started without pipes")
        # A process that has died is told by its empty answer.
        with suppress(BrokenPipeError):
            source.write(request)
            source.flush()
        return target.readline()

    def _stop(self, late: threading.Event) -> None:
        late.set()
        self._process.kill()

    def _answered(self, answer: Mapping[str, Any]) -> Any:
        if "error" not in answer:
            return answer["done"]
        kind = _ERRORS[answer["error"]]
        found = _MISSING.search(self._said()) if kind is RuntimeUnavailable else None
        lacks = f" (it lacks {found.group(1)})" if found is not None else ""
        raise kind(answer["text"] + lacks)

    def _end(self, late: bool) -> str:
        if late:
            return f"did not answer in {self._timeout:g} seconds and was stopped"
        return f"ended with exit code {self._process.wait()}"

    def _said(self) -> str:
        self._log.seek(0)
        return " ".join(self._log.read().decode("utf-8", "replace").split())


def _environment() -> dict[str, str]:
    """The worker imports from where this process does, installed or not."""
    paths = os.pathsep.join(os.path.abspath(path) for path in sys.path)
    return {**os.environ, "PYTHONPATH": paths}
