"""A benchmark that another machine ran: from a bundle's results to rows and verdicts."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from patch_compile.bench.judging import COMPILED, DENSE, result_of
from patch_compile.bench.predictions import read_predictions
from patch_compile.bench.results import BenchResult, Measured
from patch_compile.errors import ModelError
from patch_compile.noting import note_measured
from patch_compile.recipe import BenchRecipe
from patch_compile.results import ModelResult, Results, import_results, note_results

__all__ = ["bench_of_results", "imported_bench"]

# As many as `BenchRecipe` asks for.
_LEAST_ROUNDS = 5


def imported_bench(folder: str | Path, into: str | Path | None = None) -> BenchResult:
    """Reads what a bundle's script measured, as `bench_models` would return it.

    Args:
        folder: the unpacked `results/`.
        into: the compiled.onnx that was bundled; its report gets the engine and the times,
            and its predictions stand beside the measurement.

    Raises:
        ModelError: if the folder is none of a bundle, lacks a model's times, or is of
            another model than `into`.
    """
    results = import_results(folder)
    if into is None:
        return bench_of_results(results)
    compiled = Path(into)
    found = bench_of_results(results, read_predictions(compiled))
    note_results(results, compiled)
    note_measured(compiled, found.to_report(), found.versions())
    return found


def bench_of_results(
    results: Results, predicted: dict[int, dict[str, float]] | None = None
) -> BenchResult:
    """Returns rows and verdicts; a round's sample is the median of its runs.

    Args:
        results: what came back.
        predicted: by tokens of a run and target, ratios of compiled to dense.

    Raises:
        ModelError: if the dense or the compiled model has too few rounds of times.
    """
    timed = {_label(model): model for model in results.models if not model.error}
    rounds = {name: _seconds(model) for name, model in timed.items()}
    rounds = {name: seconds for name, seconds in rounds.items() if seconds}
    # A ratio is of one round: what slowed one model in it slowed the other.
    shared = sorted(set.intersection(*map(set, rounds.values()))) if rounds else []
    count = len(shared)
    lacking = sorted({DENSE, COMPILED} - rounds.keys())
    if lacking or count < _LEAST_ROUNDS:
        what = f"no times of '{lacking[0]}'" if lacking else f"{count} rounds of all models"
        raise ModelError(
            f"results | hold {what}; expected the dense and the compiled model, "
            f"{_LEAST_ROUNDS} rounds each; bundle with --dense, and run ROUNDS=10 bash run.sh"
        )
    recipe = BenchRecipe(
        runtime="trtexec", tokens=(results.tokens,), batch=results.batch, rounds=count
    )
    ordered = sorted(rounds, key=lambda name: (not name.startswith(DENSE), name))
    return result_of(
        recipe,
        {results.tokens: {name: _of(rounds[name], shared) for name in ordered}},
        tuple(_measured(name, timed[name]) for name in ordered),
        version=results.version,
        device="unknown" if results.gpu is None else results.gpu.name,
        predicted=predicted or {},
    )


def _label(model: ModelResult) -> str:
    return model.name.replace("_", " ")


def _seconds(model: ModelResult) -> dict[int, float]:
    """Returns the seconds of every round that has any, but for that of the build."""
    turns = ((number, runs) for number, runs in model.rounds.items() if number and runs)
    return {number: float(np.median(runs)) / 1e3 for number, runs in turns}


def _of(seconds: Mapping[int, float], rounds: Sequence[int]) -> NDArray[np.float64]:
    return np.array([seconds[number] for number in rounds])


def _measured(name: str, model: ModelResult) -> Measured:
    evidence = model.evidence
    return Measured(
        name,
        "",
        None,
        None if evidence.performance is None else evidence.performance.build,
        None,
        {"TensorRT": len(evidence.layers)} if evidence.layers else None,
        model.bytes,
        evidence.memory.total,
    )
