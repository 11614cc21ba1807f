"""Times one model on ONNX Runtime: `python -m patch_compile.runtimes._ort_worker`.

One process a model: its peak memory is the model's own, and native code that crashes takes
nothing else along. Requests come as lines of JSON on standard input, answers go to standard
output; see `ort_timing`.
"""

import gc
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from patch_compile._require import require
from patch_compile.errors import PatchCompileError
from patch_compile.recipe import BenchRecipe
from patch_compile.runtimes.device import device_name
from patch_compile.runtimes.free_axes import pin_axes
from patch_compile.runtimes.gpu import process_bytes
from patch_compile.runtimes.inputs import input_shapes, random_inputs
from patch_compile.runtimes.onnxruntime import (
    explained,
    read_graph,
    session_options,
    start_session,
)
from patch_compile.runtimes.providers import Declared, EngineWishes, check_assigned, providers
from patch_compile.runtimes.sizes import check_sizes

__all__ = ["main"]

# Threads that wait for work would take the cores from the next model's run.
_STOP_SPINNING = "session.force_spinning_stop"


class _Model:
    """The session of this process."""

    def __init__(self, model: str, recipe: dict[str, Any], cache: str | None) -> None:
        self._subject = f"model '{model}'"
        # JSON knows no tuples.
        given: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in recipe.items()
        }
        self._recipe = BenchRecipe(**given)
        self._version = require("onnxruntime", "cpu").__version__
        self._device = "cpu" if self._recipe.runtime == "ort-cpu" else "cuda"
        options = session_options(optimise=True)
        pin_axes(options, read_graph(Path(model)))
        options.intra_op_num_threads = self._recipe.threads
        options.add_session_config_entry(_STOP_SPINNING, "1")
        chosen = providers(self._recipe.runtime, _wishes(Path(model), self._recipe, cache))
        start = time.perf_counter()
        self._session: Any = start_session(self._subject, model, options, chosen)
        self._seconds = time.perf_counter() - start
        self._nodes = check_assigned(self._session, self._recipe.runtime)
        self._binding: Any = None

    def answer(self, name: str, value: int) -> Any:
        """Does what is asked for and returns what JSON can hold."""
        with explained(self._subject):
            if name == "feed":
                return self._feed(value)
            if name == "times":
                return self._times(value)
        return self._facts()

    def _feed(self, tokens: int) -> None:
        runtime = require("onnxruntime", "cpu")
        recipe, session = self._recipe, self._session
        inputs = session.get_inputs()
        check_sizes(
            self._subject,
            lambda batch, sequence: input_shapes(inputs, batch=batch, sequence=sequence),
            recipe.batch,
            tokens,
        )
        feeds = random_inputs(session, seed=recipe.seed, batch=recipe.batch, sequence=tokens)
        # Bound once, so that no run pays for copies between host and GPU.
        self._binding = session.io_binding()
        for name, array in feeds.items():
            value = runtime.OrtValue.ortvalue_from_numpy(array, self._device, 0)
            self._binding.bind_ortvalue_input(name, value)
        for output in session.get_outputs():
            self._binding.bind_output(output.name, self._device)

    def _times(self, runs: int) -> list[float]:
        seconds = []
        gc.disable()
        for _ in range(runs):
            start = time.perf_counter()
            self._session.run_with_iobinding(self._binding)
            self._binding.synchronize_outputs()
            seconds.append(time.perf_counter() - start)
        gc.enable()
        return seconds

    def _facts(self) -> dict[str, Any]:
        return {
            "version": self._version,
            "device": device_name(gpu=self._device != "cpu"),
            "build_seconds": self._seconds,
            "peak_bytes": _peak_bytes(),
            "nodes": self._nodes,
            "device_bytes": None if self._device == "cpu" else process_bytes(os.getpid()),
        }


def _wishes(model: Path, recipe: BenchRecipe, cache: str | None) -> EngineWishes:
    return EngineWishes(
        Declared.of(model),
        batch=recipe.batch,
        tokens=(min(recipe.tokens), max(recipe.tokens)),
        sparse=recipe.sparse,
        cache=None if cache is None else Path(cache),
    )


def _peak_bytes() -> int | None:
    """Peak resident memory of this process alone; `getrusage` would inherit the parent's."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    lines = dict(line.split(":", 1) for line in status.read_text("utf-8").splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024


def main() -> None:
    """Answers requests until standard input ends; the first one opens the model."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    # Libraries that print would garble the answers.
    os.dup2(2, 1)
    model: _Model | None = None
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any] = {"done": None}
        try:
            if model is None:
                model = _Model(**request)
            else:
                answer["done"] = model.answer(**request)
        except PatchCompileError as error:
            answer = {"error": type(error).__name__, "text": str(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
