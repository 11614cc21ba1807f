"""Errors of predicted GEMM latencies where whole models, or numbers of tokens, were left out.

python benchmarks/latency_model.py

Every table that is shipped is split: all shapes of one model are left out in turn, or all
points of one number of tokens (the inner ones), and predicted from the rest, parameters
fitted again each time. `sign` is how often "2:4 is faster" is right where the two latencies
differ by more than 3 %; `covered` how many measurements lie in the 90 % interval.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files
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
# From a table and sizes (Q, 3): log microseconds, dense and 2:4, (Q, 2), and deviations.
Predictor = Callable[[Table, Floats], tuple[Floats, Floats | None]]

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
    tables = _tables()
    splits = {"models": _without_models}
    if options.tokens_too:
        splits["tokens"] = _without_tokens
    data: dict[str, Any] = {}
    for split, parts in splits.items():
        print(f"left out: {split}")
        print(f"{'':20} {'median':>7} {'M>=256':>7} {'p90':>7} {'sign':>7} {'covered':>8}")
        data[split] = {n: _row(n, tables, parts, p) for n, p in _PREDICTORS.items()}
    targets = {f"{t.gpu}-{t.dtype}": _folds(t, _without_models, _ours) for t in tables}
    print("ours, models left out, by target")
    data["by_target"] = {name: _show(name, folds) for name, folds in targets.items()}
    write_result("latency_model", data)


def _row(
    name: str, tables: list[Table], parts: "Parts", predictor: Predictor
) -> dict[str, float]:
    folds = [fold for table in tables for fold in _folds(table, parts, predictor)]
    return _show(name, folds)


def _show(name: str, folds: list[Fold]) -> dict[str, float]:
    row = _errors(folds)
    cells = [f"{row[key]:7.2%}" for key in ("median", "median_256", "p90", "sign")]
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
        "median_256": float(np.median(wrong[many])),
        "p90": float(np.quantile(wrong, 0.9)),
        "sign": float(np.mean((gain > 0)[clear] == (guess > 0)[clear])),
    }
    deviations = [fold.deviation for fold in folds if fold.deviation is not None]
    if deviations:
        off = np.abs(predicted - measured) / np.concatenate(deviations)
        row["covered"] = float(np.mean(off < _NINETY))
    return row


Parts = Callable[[Table], Iterator[tuple[Table, Floats]]]


def _folds(table: Table, parts: Parts, predictor: Predictor) -> list[Fold]:
    folds = []
    for kept, out in parts(table):
        predicted, deviation = predictor(kept, out[:, :3])
        folds.append(Fold(out[:, :3], np.log(out[:, 3:]), predicted, deviation))
    return folds


def _without_models(table: Table) -> Iterator[tuple[Table, Floats]]:
    for origin, rows in table.points.items():
        if origin == "SQUARE":
            continue  # a sweep, no model
        kept = {o: r for o, r in table.points.items() if o != origin}
        yield Table(table.gpu, table.dtype, kept, table.source), rows


def _without_tokens(table: Table) -> Iterator[tuple[Table, Floats]]:
    rows = np.concatenate([r for o, r in table.points.items() if o != "SQUARE"])
    tokens = np.unique(rows[:, 0])
    for m in tokens[1:-1]:
        kept = {o: r[r[:, 0] != m] for o, r in table.points.items()}
        yield Table(table.gpu, table.dtype, kept, table.source), rows[rows[:, 0] == m]


def _roofline(table: Table, sizes: Floats) -> tuple[Floats, None]:
    gpu = GPUS[table.gpu]
    columns = []
    for kind in (0, 1):
        known = log_roofline(table.sizes, gpu, table.dtype, sparse24=bool(kind))
        bound = log_roofline(sizes, gpu, table.dtype, sparse24=bool(kind))
        columns.append(bound + np.median(table.log_us[:, kind] - known))
    return np.column_stack(columns), None


def _nearest(table: Table, sizes: Floats) -> tuple[Floats, None]:
    """The nearest measured latency, times the ratio of multiply-adds."""
    logs, known = np.log(sizes), np.log(table.sizes)
    best = ((logs[:, None] - known) ** 2).sum(2).argmin(1)
    return table.log_us[best] + (logs.sum(1) - known[best].sum(1))[:, None], None


def _plain(table: Table, sizes: Floats) -> tuple[Floats, None]:
    """One process a kind on log sizes: Matérn 3/2, a linear mean, nothing of hardware."""
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


def _ours(table: Table, sizes: Floats) -> tuple[Floats, Floats]:
    model = LatencyModel(fitted(table), GPUS[table.gpu], table.dtype)
    logs = [model.log_us(sizes, sparse24=sparse) for sparse in (False, True)]
    spread = [model.deviation(sizes, sparse24=sparse) for sparse in (False, True)]
    return np.column_stack(logs), np.column_stack(spread)


_PREDICTORS: dict[str, Predictor] = {
    "roofline": _roofline,
    "nearest neighbour": _nearest,
    "plain GP": _plain,
    "ours": _ours,
}


def _tables() -> list[Table]:
    folder = files("patch_compile.targets") / "tables"
    paths = sorted(folder.iterdir(), key=lambda path: path.name)
    return [Table.from_json(path.read_text("utf-8")) for path in paths]


if __name__ == "__main__":
    main()
