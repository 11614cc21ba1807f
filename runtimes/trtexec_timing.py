"""Times models by trtexec: an engine a model, and a process a round.

trtexec warms up by itself and times on the GPU, without the copies between host and GPU.
"""

import tempfile
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from patch_compile.errors import ModelError, RuntimeUnavailable
from patch_compile.recipe import BenchRecipe, BuildRecipe
from patch_compile.runtimes._process import death, run_logged, tail
from patch_compile.runtimes.engines import EngineResult, build_engine
from patch_compile.runtimes.layer_info import read_times
from patch_compile.runtimes.network_inputs import network_inputs
from patch_compile.runtimes.profiles import only, profile_shapes, run_shapes
from patch_compile.runtimes.sizes import check_sizes
from patch_compile.runtimes.timing import ModelFacts
from patch_compile.runtimes.trtexec_command import find_trtexec, probe, timing_command

__all__ = ["TrtexecModel", "open_timed"]


def open_timed(model: Path, recipe: BenchRecipe, cache: Path | None = None) -> "TrtexecModel":
    """Builds an engine for the recipe's tokens, tuned for the most of them.

    Args:
        model: the .onnx file; external data beside it.
        recipe: its tokens, batch and time limit.
        cache: folder that keeps the engine and kernel timings; by default nothing is kept,
            so that a second engine of one model shows what choosing kernels anew makes of it.

    Raises:
        ModelError: if the model is missing, or trtexec refuses it.
        RuntimeUnavailable: if trtexec is missing, crashes or takes too long.
    """
    asked = BuildRecipe(
        engine="trtexec",
        sparse=recipe.sparse,
        batch=only(recipe.batch),
        sequence=(min(recipe.tokens), max(recipe.tokens), max(recipe.tokens)),
        timing_cache="",
        timeout=recipe.timeout,
    )
    with ExitStack() as stack:
        if cache is None:
            cache = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        else:
            asked = replace(asked, timing_cache="timing.cache")
        built = build_engine(model, cache / f"{model.stem}.engine", asked)
        return TrtexecModel(model, built, recipe, stack.pop_all())


class TrtexecModel:
    """One engine on the disk; see `TimedModel`."""

    def __init__(
        self, model: Path, built: EngineResult, recipe: BenchRecipe, kept: ExitStack
    ) -> None:
        self._model, self._built, self._recipe, self._kept = model, built, recipe, kept
        self._inputs = network_inputs(model)
        self._tool = probe(find_trtexec() or "trtexec")
        self._shapes: dict[str, tuple[tuple[int, ...], ...]] = {}

    def feed(self, tokens: int) -> None:
        """Sets the shapes of the runs to come; trtexec makes the values.

        Raises:
            RecipeError: if the model's fixed shapes are of another batch or number of tokens.
        """
        batch = self._recipe.batch
        shapes = partial(run_shapes, self._inputs)
        check_sizes(f"model '{self._model}'", shapes, batch, tokens)
        self._shapes = profile_shapes(self._inputs, only(batch), only(tokens))

    def times(self, runs: int) -> list[float]:
        """Returns the GPU's seconds of so many runs, or of as many as fill a second.

        Raises:
            ModelError: if trtexec fails.
            RuntimeUnavailable: if it crashes or takes longer than the recipe allows.
        """
        engine = self._built.path
        times, log = engine.with_suffix(".round.json"), engine.with_suffix(".round.log")
        times.unlink(missing_ok=True)
        command = timing_command(self._tool, engine, self._shapes, runs, times)
        timeout = self._recipe.timeout
        code = run_logged(command, log, subject="trtexec", timeout=timeout, show=lambda: None)
        if code or not times.is_file():
            kind = RuntimeUnavailable if code < 0 else ModelError
            end = death(code) if code else "wrote no times"
            raise kind(f"model '{self._model}' | trtexec {end}; last words: {tail(log)}")
        found = read_times(times.read_text("utf-8"), f"times of '{self._model}'")
        return [milliseconds / 1e3 for milliseconds in found]

    def facts(self) -> ModelFacts:
        """Returns what its build told."""
        evidence = self._built.evidence
        told = None if evidence.performance is None else evidence.performance.build
        return ModelFacts(
            version=evidence.version,
            device=evidence.device or "unknown",
            build_seconds=self._built.seconds if told is None else told,
            peak_bytes=None,
            nodes={"TensorRT": len(evidence.layers)} if evidence.layers else None,
            engine_bytes=self._built.bytes,
            device_bytes=evidence.memory.total,
        )

    def close(self) -> None:
        """Removes the engine, unless a cache keeps it."""
        self._kept.close()
