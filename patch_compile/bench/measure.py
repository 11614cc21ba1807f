"""Latencies of a compiled model and its dense original, in turns.

Every round times every model once, in an order drawn anew, and every model has every place
equally often, so that neither a slow minute of the machine nor what ran before favours one. A
second session of the dense model shows what two equal models differ by here and now: the
noise.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from patch_compile._require import require
from patch_compile.bench.baselines import make_baselines
from patch_compile.bench.judging import AGAIN, COMPILED, DENSE, result_of
from patch_compile.bench.predictions import read_predictions
from patch_compile.bench.results import BenchResult, Measured
from patch_compile.errors import RecipeError
from patch_compile.io.atomic import check_writable
from patch_compile.noting import note_measured
from patch_compile.recipe import BenchRecipe

if TYPE_CHECKING:
    from patch_compile.runtimes.timing import ModelFacts, TimedModel

__all__ = ["bench_models"]

Progress = Callable[[int, int, str], None]

# Types that products are computed in; a graph has integers of other uses besides.
_COMPUTED = frozenset({"FLOAT", "FLOAT16", "BFLOAT16", "INT8", "FLOAT8E4M3FN"})


def bench_models(
    dense: str | Path,
    compiled: str | Path,
    recipe: BenchRecipe | None = None,
    *,
    baselines: Mapping[str, str | Path] | None = None,
    cache: str | Path | None = None,
    progress: Progress | None = None,
) -> BenchResult:
    """Measures what compiling does to latency, memory and build time.

    Args:
        dense: the original .onnx file.
        compiled: the compiled one; a report.json beside it may hold predictions, and gets
            what is measured.
        recipe: see `BenchRecipe`.
        baselines: more .onnx files by a name of yours, as `all 2:4` or `FFN only`.
        cache: folder where TensorRT keeps engines and timings, a folder a model.
        progress: called with (rounds done, rounds in all, what).

    Raises:
        ModelError: a model cannot be read or run.
        RecipeError: a baseline bears a name that is taken.
        RuntimeUnavailable: the runtime or its provider is missing or broken.
    """
    recipe = recipe or BenchRecipe()
    more = {name: Path(path) for name, path in (baselines or {}).items()}
    _check_names(more, recipe)
    dense, compiled = Path(dense), Path(compiled)
    with TemporaryDirectory(prefix="patch-compile-") as folder:
        made = make_baselines(dense, compiled, recipe.baselines, Path(folder))
        base = made.pop("dense", dense)
        again = dict.fromkeys(_again(recipe), base)
        paths = {DENSE: base, **again, COMPILED: compiled, **made, **more}
        found = _measured(paths, recipe, cache, progress)
    note_measured(compiled, found.to_report(), found.versions())
    return found


def _again(recipe: BenchRecipe) -> tuple[str, ...]:
    """Names of the further sessions of the dense model."""
    return (AGAIN, *(f"{AGAIN} {number}" for number in range(2, recipe.rebuilds + 1)))


def _measured(
    paths: Mapping[str, Path],
    recipe: BenchRecipe,
    cache: str | Path | None,
    progress: Progress | None,
) -> BenchResult:
    with _opened(paths, recipe, cache, progress) as models:
        samples = {
            tokens: _sampled(models, tokens, recipe, progress) for tokens in recipe.tokens
        }
        facts = {name: model.facts() for name, model in models.items()}
    return result_of(
        recipe,
        samples,
        tuple(_model(name, paths[name], fact) for name, fact in facts.items()),
        version=facts[DENSE].version,
        device=facts[DENSE].device,
        predicted=read_predictions(paths[COMPILED]),
    )


def _model(name: str, path: Path, fact: "ModelFacts") -> Measured:
    declared = require("patch_compile.runtimes.providers", "cpu").Declared.of(path)
    files = [path, *(path.parent / file for file in declared.data_files)]
    return Measured(
        name,
        str(path),
        sum(file.stat().st_size for file in files),
        fact.build_seconds,
        fact.peak_bytes,
        fact.nodes,
        fact.engine_bytes,
        fact.device_bytes,
        tuple(sorted(declared.weight_types & _COMPUTED)),
    )


def _check_names(baselines: Mapping[str, Path], recipe: BenchRecipe) -> None:
    taken = sorted({DENSE, *_again(recipe), COMPILED, *recipe.baselines} & baselines.keys())
    if taken:
        raise RecipeError(f"baseline '{taken[0]}' | is a name of ours; choose another")


@contextmanager
def _opened(
    paths: Mapping[str, Path],
    recipe: BenchRecipe,
    cache: str | Path | None,
    progress: Progress | None,
) -> "Iterator[dict[str, TimedModel]]":
    timing = require("patch_compile.runtimes.timing", "cpu")
    folder = None if cache is None else Path(cache)
    if folder is not None:
        check_writable(folder)
    models: dict[str, TimedModel] = {}
    with ExitStack() as stack:
        for done, (name, path) in enumerate(paths.items()):
            if progress is not None:
                progress(done, len(paths), f"opening, {name}")
            # A folder each: a second session that took the first one's engine and timings
            # would show no noise of the builder.
            own = None if folder is None else folder / name.replace(" ", "-")
            if own is not None:
                own.mkdir(parents=True, exist_ok=True)
            models[name] = timing.open_timed(path, recipe, own)
            stack.callback(models[name].close)
        yield models


def _sampled(
    models: "Mapping[str, TimedModel]",
    tokens: int,
    recipe: BenchRecipe,
    progress: Progress | None,
) -> dict[str, NDArray[np.float64]]:
    """Returns the seconds of every round by model, float64 (rounds,)."""
    for model in models.values():
        model.feed(tokens)
        if recipe.warmup:
            model.times(recipe.warmup)
    samples: dict[str, list[float]] = {name: [] for name in models}
    for done, order in enumerate(_orders(list(models), recipe), start=1):
        for name in order:
            samples[name].append(float(np.median(models[name].times(recipe.runs))))
        if progress is not None:
            progress(done, recipe.rounds, f"timing {tokens} tokens")
    return {name: np.array(seconds) for name, seconds in samples.items()}


def _orders(names: Sequence[str], recipe: BenchRecipe) -> Iterator[list[str]]:
    """Yields the order of each round: in as many rounds as models, each has every place."""
    rng = np.random.default_rng(recipe.seed)
    shifts: list[int] = []
    drawn = rng.permutation(len(names))
    for _ in range(recipe.rounds):
        if not shifts:
            drawn = rng.permutation(len(names))
            shifts = rng.permutation(len(names)).tolist()
        yield [names[int(i)] for i in np.roll(drawn, shifts.pop())]
