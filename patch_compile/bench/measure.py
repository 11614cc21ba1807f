"""Latencies of a compiled model and its dense original, in turns.

Every round times every model once, in an order drawn anew, and every model has every place
equally often, so that neither a slow minute of the machine nor what ran before favours one. A
second session of the dense model shows what two equal models differ by here and now: the
noise.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from patch_compile._require import require
from patch_compile.bench.results import BenchResult, BenchRow, Measured
from patch_compile.bench.statistics import (
    judge,
    median_interval,
    noise_floor,
    ratio_interval,
)
from patch_compile.errors import ModelError, RecipeError
from patch_compile.io.atomic import check_writable
from patch_compile.parsing import DAMAGE, parse_json
from patch_compile.recipe import BenchRecipe

if TYPE_CHECKING:
    from patch_compile.runtimes.timing import TimedModel

__all__ = ["AGAIN", "COMPILED", "DENSE", "bench_models"]

Progress = Callable[[int, int, str], None]

DENSE, AGAIN, COMPILED = "dense", "dense again", "compiled"


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
        compiled: the compiled one; a report.json beside it may hold predictions.
        recipe: see `BenchRecipe`.
        baselines: more .onnx files by a name of yours, as `all 2:4` or `FFN only`.
        cache: folder where TensorRT providers keep engines and timings.
        progress: called with (rounds done, rounds in all, what).

    Raises:
        ModelError: a model cannot be read or run.
        RecipeError: a baseline bears a name that is taken.
        RuntimeUnavailable: the runtime or its provider is missing or broken.
    """
    recipe = recipe or BenchRecipe()
    more = {name: Path(path) for name, path in (baselines or {}).items()}
    _check_names(more)
    paths = {DENSE: Path(dense), AGAIN: Path(dense), COMPILED: Path(compiled), **more}
    with _opened(paths, recipe, cache, progress) as models:
        samples = {
            tokens: _sampled(models, tokens, recipe, progress) for tokens in recipe.tokens
        }
        facts = {name: model.facts() for name, model in models.items()}
    rows = [
        row
        for tokens, found in samples.items()
        for row in _rows(found, tokens, recipe, _predictions(paths[COMPILED], tokens))
    ]
    measured = tuple(
        Measured(
            name,
            str(paths[name]),
            _size(paths[name]),
            fact.build_seconds,
            fact.peak_bytes,
            fact.nodes,
        )
        for name, fact in facts.items()
    )
    noise = {row.tokens: noise_floor(row.ratio) for row in rows if row.model == AGAIN}
    return BenchResult(recipe, facts[DENSE].version, tuple(rows), measured, noise)


def _check_names(baselines: Mapping[str, Path]) -> None:
    taken = sorted({DENSE, AGAIN, COMPILED} & baselines.keys())
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
            models[name] = timing.open_timed(path, recipe, folder)
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


def _rows(
    samples: Mapping[str, NDArray[np.float64]],
    tokens: int,
    recipe: BenchRecipe,
    predicted: Mapping[str, float],
) -> list[BenchRow]:
    options = (recipe.confidence, recipe.seed)
    ratios = {name: ratio_interval(s, samples[DENSE], *options) for name, s in samples.items()}
    floor = noise_floor(ratios[AGAIN])
    rows = []
    for name, seconds in samples.items():
        latency = median_interval(seconds, *options)
        rows.append(
            BenchRow(
                model=name,
                tokens=tokens,
                seconds=latency,
                ratio=ratios[name],
                verdict=None if name in (DENSE, AGAIN) else judge(ratios[name], floor),
                tokens_per_second=recipe.batch * tokens / latency.median,
                predicted=predicted if name == COMPILED else {},
                samples=tuple(seconds.tolist()),
            )
        )
    return rows


def _predictions(compiled: Path, tokens: int) -> dict[str, float]:
    """Latency ratios that report.json predicts for so many tokens, by target, if it does."""
    path = compiled.with_name("report.json")
    if not path.is_file():
        return {}
    try:
        entries = parse_json(path.read_text("utf-8")).get("predicted", ())
        return {str(e["target"]): float(e["ratio"]) for e in entries if e["tokens"] == tokens}
    except DAMAGE as error:
        raise ModelError(
            f"report '{path}' | holds no predictions that can be read: {error}; compile again"
        ) from error


def _size(model: Path) -> int:
    declared = require("patch_compile.runtimes.providers", "cpu").Declared.of(model)
    files = [model, *(model.parent / name for name in declared.data_files)]
    return sum(file.stat().st_size for file in files)
