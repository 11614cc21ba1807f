"""Errors of predicted GEMM latencies where whole models, or numbers of tokens, were left out.

python benchmarks/latency_model.py

Every table that is shipped is split: all shapes of one model are left out in turn, or all
points of the fewest tokens, or of one number of tokens (the inner ones), of all dtypes of a
GPU at once, and predicted from the rest, parameters fitted again each time. The fewest tokens
then lie an octave outside of what is known. `sign` is how often "2:4 is faster" is right
where the two latencies differ by more than 3 %; `covered` how many measurements lie in the
90 % interval. `repeatability`: how often the sign of one 16-bit dtype is that of the other,
same GPU, same sizes, where both differ by more than 3 % in the first: what a model could
reach that knew every shape from another measurement.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from itertools import chain, groupby
from typing import Any

import numpy as np
from measuring import write_result
from numpy.typing import NDArray
from scipy.optimize import minimize

from patch_compile.targets.datasheets import GPUS
from patch_compile.targets.features import log_roofline
from patch_compile.targets.model import LatencyModel, fitted
from patch_compile.targets.process import matern
from patch_compile.targets.table import Table

Floats = NDArray[np.float64]
# Of a GPU all tables, and which of them is asked for.
Tables = tuple[Table, ...]
# From those and sizes (Q, 3): log microseconds, dense and 2:4, (Q, 2), and deviations.
Predictor = Callable[[Tables, int, Floats], tuple[Floats, Floats | None]]
# By target; a list of folds each.
Folds = dict[str, list["Fold"]]

_MANY = 256
_CLEAR = 0.03
_NINETY = 1.645


@dataclass(frozen=True)
class Fold:
    """What was left out: sizes (Q, 3), and logs of what was measured and predicted (Q, 2)."""

    sizes: Floats
    measured: Floats
    predicted: Floats
    deviation: Floats | None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens-too", action="store_true", help="also leave tokens out")
    options = parser.parse_args()
    splits = {"models": _models, "fewest": _fewest, "tokens": _tokens}
    if not options.tokens_too:
        del splits["tokens"]
    data: dict[str, Any] = {}
    for split, values in splits.items():
        print(f"left out: {split}")
        print(f"{'':20} {'median':>7} {'M>=256':>7} {'p90':>7} {'sign':>7} {'covered':>8}")
        folds = {name: _folds(values, predictor) for name, predictor in _PREDICTORS.items()}
        data[split] = {n: _show(n, list(chain(*own.values()))) for n, own in folds.items()}
        if split == "models":
            print("ours, models left out, by target")
            data["by_target"] = {n: _show(n, own) for n, own in folds["ours"].items()}
    data["repeatability"] = _repeatability()
    print(f"repeatability of the sign: {data['repeatability']['sign']:.2%}")
    write_result("latency_model", data)


def _show(name: str, folds: list[Fold]) -> dict[str, float]:
    row = _errors(folds)
    keys = ("median", "median_256", "p90", "sign")
    cells = [f"{row[key]:7.2%}" if key in row else 7 * " " for key in keys]
    covered = f"{row['covered']:8.1%}" if "covered" in row else ""
    print(f"{name:20}", *cells, covered, flush=True)
    return row


def _errors(folds: list[Fold]) -> dict[str, float]:
    measured = np.concatenate([fold.measured for fold in folds])
    predicted = np.concatenate([fold.predicted for fold in folds])
    many = np.concatenate([fold.sizes[:, 0] >= _MANY for fold in folds])
    wrong = np.abs(np.expm1(predicted - measured))
    gain, guess = measured[:, 0] - measured[:, 1], predicted[:, 0] - predicted[:, 1]
    clear = np.abs(np.expm1(gain)) > _CLEAR
    row = {
        "predictions": float(wrong.size),
        "median": float(np.median(wrong)),
        "p90": float(np.quantile(wrong, 0.9)),
        "sign": float(np.mean((gain > 0)[clear] == (guess > 0)[clear])),
    }
    if many.any():
        row["median_256"] = float(np.median(wrong[many]))
    deviations = [fold.deviation for fold in folds if fold.deviation is not None]
    if deviations:
        off = np.abs(predicted - measured) / np.concatenate(deviations)
        row["covered"] = float(np.mean(off < _NINETY))
    return row


# Which of a table's points belong to which part; None belongs to none that is left out.
Values = Callable[[Table], list[Any]]


def _models(table: Table) -> list[Any]:
    """Of every point its model; the sweep of squares is none."""
    return [
        None if origin == "SQUARE" else origin
        for origin, rows in table.points.items()
        for _ in rows
    ]


def _fewest(table: Table) -> list[Any]:
    """The least M, of every point that has it."""
    least = table.sizes[:, 0].min()
    return [m if m == least else None for m in table.sizes[:, 0]]


def _tokens(table: Table) -> list[Any]:
    """Of every point its M, but for the least and the most, and for squares."""
    tokens = [m for m, model in zip(table.sizes[:, 0], _models(table), strict=True) if model]
    ends = min(tokens), max(tokens)
    return [None if m in ends else m for m in table.sizes[:, 0]]


def _folds(values: Values, predictor: Predictor) -> Folds:
    found: Folds = {}
    for _, own in groupby(_tables(), lambda table: table.gpu):
        tables = tuple(own)
        parts = {value for table in tables for value in values(table)} - {None}
        for part in sorted(parts):
            outs = [np.array([v == part for v in values(table)]) for table in tables]
            kept = tuple(_without(t, out) for t, out in zip(tables, outs, strict=True))
            for index, (table, out) in enumerate(zip(tables, outs, strict=True)):
                out = out & np.array([model is not None for model in _models(table)])
                if not out.any():
                    continue
                sizes = table.sizes[out]
                predicted, deviation = predictor(kept, index, sizes)
                fold = Fold(sizes, table.log_us[out], predicted, deviation)
                found.setdefault(f"{table.gpu}-{table.dtype}", []).append(fold)
    return found


def _without(table: Table, out: NDArray[np.bool_]) -> Table:
    ends = np.cumsum([len(rows) for rows in table.points.values()])[:-1]
    parts = zip(table.points.items(), np.split(out, ends), strict=True)
    kept = {origin: rows[~gone] for (origin, rows), gone in parts}
    return Table(table.gpu, table.dtype, kept, table.source)


def _repeatability() -> dict[str, float]:
    same, count = 0, 0
    by_name = {(table.gpu, table.dtype): table for table in _tables()}
    for gpu in sorted({gpu for gpu, _ in by_name}):
        if {(gpu, "bf16"), (gpu, "fp16")} <= by_name.keys():
            one, other = (_gains(by_name[gpu, dtype]) for dtype in ("bf16", "fp16"))
            both = [(one[size], other[size]) for size in one.keys() & other.keys()]
            clear = [(a > 0) == (b > 0) for a, b in both if abs(np.expm1(a)) > _CLEAR]
            same, count = same + sum(clear), count + len(clear)
    return {"sign": same / count, "cases": count}


def _gains(table: Table) -> dict[tuple[float, ...], float]:
    logs = table.log_us
    return dict(zip(map(tuple, table.sizes), logs[:, 0] - logs[:, 1], strict=True))


def _roofline(tables: Tables, index: int, sizes: Floats) -> tuple[Floats, None]:
    table = tables[index]
    gpu = GPUS[table.gpu]
    columns = []
    for kind in (0, 1):
        known = log_roofline(table.sizes, gpu, table.dtype, sparse24=bool(kind))
        bound = log_roofline(sizes, gpu, table.dtype, sparse24=bool(kind))
        columns.append(bound + np.median(table.log_us[:, kind] - known))
    return np.column_stack(columns), None


def _nearest(tables: Tables, index: int, sizes: Floats) -> tuple[Floats, None]:
    """The nearest measured latency, times the ratio of multiply-adds."""
    table = tables[index]
    logs, known = np.log(sizes), np.log(table.sizes)
    best = ((logs[:, None] - known) ** 2).sum(2).argmin(1)
    return table.log_us[best] + (logs.sum(1) - known[best].sum(1))[:, None], None


def _plain(tables: Tables, index: int, sizes: Floats) -> tuple[Floats, None]:
    """One process a kind on log sizes: Matérn 3/2, a linear mean, nothing of hardware."""
    table = tables[index]
    x, at = np.log2(table.sizes), np.log2(sizes)
    return np.column_stack([_plain_one(x, y, at) for y in table.log_us.T]), None


def _plain_one(x: Floats, y: Floats, at: Floats) -> Floats:
    def covariance(p: Floats, a: Floats, b: Floats) -> Floats:
        linear = 10 * (1 + a @ b.T / 9)
        kernel: Floats = linear + np.exp(2 * p[3]) * matern(a, b, p[:3])
        return kernel

    def loss(p: Floats) -> float:
        full = covariance(p, x, x) + np.exp(2 * p[4]) * np.eye(len(y))
        factor = np.linalg.cholesky(full)
        solved = np.linalg.solve(factor, y - y.mean())
        return float(0.5 * solved @ solved + np.log(np.diag(factor)).sum())

    start = np.array([1.0, 1.0, 1.0, np.log(0.3), np.log(0.05)])
    limits = [(-3, 5)] * 3 + [(-5, 2), (-5, 0)]
    p = minimize(loss, start, method="L-BFGS-B", bounds=limits, options={"maxiter": 40}).x
    full = covariance(p, x, x) + np.exp(2 * p[4]) * np.eye(len(y))
    found: Floats = covariance(p, at, x) @ np.linalg.solve(full, y - y.mean()) + y.mean()
    return found


def _ours(tables: Tables, index: int, sizes: Floats) -> tuple[Floats, Floats]:
    own = _fitted(tables)
    table, beside = own[index], own[:index] + own[index + 1 :]
    model = LatencyModel(table, GPUS[table.gpu], table.dtype, beside)
    logs = [model.log_us(sizes, sparse24=sparse) for sparse in (False, True)]
    spread = [model.deviation(sizes, sparse24=sparse) for sparse in (False, True)]
    return np.column_stack(logs), np.column_stack(spread)


@lru_cache(maxsize=1)
def _fitted(tables: Tables) -> Tables:
    return fitted(tables)


_PREDICTORS: dict[str, Predictor] = {
    "roofline": _roofline,
    "nearest neighbour": _nearest,
    "plain GP": _plain,
    "ours": _ours,
}


@cache
def _tables() -> list[Table]:
    folder = files("patch_compile.targets") / "tables"
    paths = sorted(folder.iterdir(), key=lambda path: path.name)
    return [Table.from_json(path.read_text("utf-8")) for path in paths]


if __name__ == "__main__":
    main()
