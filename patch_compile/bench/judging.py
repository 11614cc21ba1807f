"""From samples to rows and verdicts: pure, whoever took the samples."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from patch_compile.bench.results import BenchResult, BenchRow, Measured
from patch_compile.bench.statistics import (
    judge,
    median_interval,
    noise_floor,
    ratio_interval,
)
from patch_compile.recipe import BenchRecipe

__all__ = ["AGAIN", "COMPILED", "DENSE", "result_of"]

# The first word of every further session of the dense model is AGAIN.
DENSE, AGAIN, COMPILED = "dense", "dense again", "compiled"

Samples = Mapping[str, NDArray[np.float64]]


def result_of(
    recipe: BenchRecipe,
    samples: Mapping[int, Samples],
    models: tuple[Measured, ...],
    *,
    version: str,
    device: str,
    predicted: Mapping[int, Mapping[str, float]],
) -> BenchResult:
    """Returns what samples show.

    Args:
        recipe: with the confidence of intervals.
        samples: by tokens and model, seconds of the rounds, float64 (rounds,); `dense` is
            among the models, and `dense again` where there is a noise to be told.
        models: what else is known of each.
        version: of the runtime.
        device: name of the GPU or processor.
        predicted: by tokens of a run, all its sequences together, and target: ratios of
            compiled to dense.
    """
    noise = {
        tokens: floor
        for tokens, found in samples.items()
        if (floor := _noise(found, recipe)) is not None
    }
    rows = [
        row
        for tokens, found in samples.items()
        for row in _rows(
            found,
            tokens,
            recipe,
            noise.get(tokens),
            # Of products: all the tokens of a run are rows of one.
            predicted.get(recipe.batch * tokens, {}),
        )
    ]
    return BenchResult(recipe, version, device, tuple(rows), models, noise)


def _noise(samples: Samples, recipe: BenchRecipe) -> float | None:
    """The farthest that a further session of the dense model lies from the first."""
    options = (recipe.confidence, recipe.seed)
    again = [s for name, s in samples.items() if name.startswith(AGAIN)]
    floors = [noise_floor(ratio_interval(s, samples[DENSE], *options)) for s in again]
    return max(floors, default=None)


def _rows(
    samples: Samples,
    tokens: int,
    recipe: BenchRecipe,
    floor: float | None,
    predicted: Mapping[str, float],
) -> list[BenchRow]:
    options = (recipe.confidence, recipe.seed)
    rows = []
    for name, seconds in samples.items():
        latency = median_interval(seconds, *options)
        ratio = ratio_interval(seconds, samples[DENSE], *options)
        known = floor is not None and not name.startswith(DENSE)
        rows.append(
            BenchRow(
                model=name,
                tokens=tokens,
                seconds=latency,
                ratio=ratio,
                verdict=judge(ratio, floor) if known and floor is not None else None,
                tokens_per_second=recipe.batch * tokens / latency.median,
                predicted=predicted if name == COMPILED else {},
                samples=tuple(seconds.tolist()),
            )
        )
    return rows
