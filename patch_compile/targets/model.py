"""Latencies of any product, from those of a table.

A latency is the roofline's times what kernels lose on it. The logarithm of the loss is
predicted twice, and averaged: for the dense and the 2:4 product each alone, and through
their mean and their ratio, which share much. Which of the two is faster a fifth process
says, of the ratio on all dtypes that were measured on the GPU: right more often, though not
as near. Where the average has the other sign, its ratio takes the place of the average's.
M: tokens. N: out features. K: in features. Q: queries. T: measured points. J: dtypes.
D: features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from patch_compile.targets.datasheets import BYTES, GPUS, Gpu
from patch_compile.targets.features import features, log_roofline
from patch_compile.targets.fitting import fit_parameters
from patch_compile.targets.process import Points, Process
from patch_compile.targets.table import QUANTITIES, Table

__all__ = ["LatencyModel", "Prediction", "fitted"]

Floats = NDArray[np.float64]

# Two sides of a normal distribution that hold 90 %.
_NINETY = 1.645

# Parameters are taken for known, so that intervals come out too narrow: by this factor, where
# whole models are left out (benchmarks/latency_model.py).
_TOO_SURE = 1.2

# Widening of the interval, in log units, an octave outside the measured sizes: so that about
# 90 % of the points of the fewest tokens lie within it when they are left out (the same).
_PER_OCTAVE_OUTSIDE = 0.2
# The same for what no measured point shows. Assumed: there is nothing to fit them to.
_UNALIGNED = 0.2
_BORROWED = 0.25

# Tensor cores load 16 bytes at a time; other sizes fall back to slower kernels.
_ALIGNED_BYTES = 16

# What one dtype tells of another: correlations of what is not explained by features. bf16
# and fp16 run the same kernels. Rounded from fits by likelihood, 0.9 to 0.98 and 0.5 to 0.9.
_ALIKE, _RELATED = 0.9, 0.5

_POOLED = frozenset({"pooled"})


@dataclass(frozen=True)
class Prediction:
    """A predicted latency.

    Attributes:
        us: microseconds.
        low: 90 % of measurements are expected above this and below `high`.
        high: see `low`.
        outside: octaves by which the query leaves the box of the measured M, N and K, 0
            within it.
        nearest: octaves to the nearest measured M, N and K together.
        estimate: borrowed from another GPU by the ratios of the datasheets.
    """

    us: float
    low: float
    high: float
    outside: float
    nearest: float
    estimate: bool


@dataclass(frozen=True, eq=False)
class LatencyModel:
    """The latencies of one GPU and dtype.

    Attributes:
        table: measured, with parameters, perhaps of another GPU or dtype.
        gpu: the GPU that is asked for.
        dtype: the dtype that is asked for.
        beside: tables of other dtypes, measured on the GPU of `table`.
    """

    table: Table
    gpu: Gpu
    dtype: str
    beside: tuple[Table, ...] = ()

    @property
    def estimate(self) -> bool:
        """Whether the table is of another GPU or dtype."""
        return self.gpu is not GPUS[self.table.gpu] or self.dtype != self.table.dtype

    def log_us(self, sizes: Floats, *, sparse24: bool) -> Floats:
        """Log microseconds at sizes (Q, 3), float (Q,)."""
        bounds = [
            log_roofline(sizes, self.gpu, self.dtype, sparse24=kind) for kind in (False, True)
        ]
        between, apart = 0.5 * (bounds[0] + bounds[1]), bounds[0] - bounds[1]
        lost = self._lost(sizes)
        dense, sparse = bounds[0] + lost["dense"], bounds[1] + lost["sparse24"]
        level = 0.5 * (between + lost["mean"] + 0.5 * (dense + sparse))
        ratio = 0.5 * (apart + lost["ratio"] + dense - sparse)
        decisive = apart + lost["pooled"]
        ratio = np.where(ratio * decisive > 0, ratio, decisive)
        return level + (-0.5 if sparse24 else 0.5) * ratio

    def deviation(self, sizes: Floats, *, sparse24: bool) -> Floats:
        """Standard deviation of a measured log latency at sizes (Q, 3), float (Q,)."""
        process, x = self._processes, self._features(sizes)
        lost, mean, ratio = (
            process[name].deviation(x[name], 0) ** 2
            for name in ("sparse24" if sparse24 else "dense", "mean", "ratio")
        )
        extra = _PER_OCTAVE_OUTSIDE * self.outside(sizes) + _UNALIGNED * self._odd(sizes)
        extra = extra + _BORROWED * self.estimate
        own = _TOO_SURE**2 * 0.5 * (lost + mean + 0.25 * ratio)
        return np.sqrt(own + extra**2)

    def outside(self, sizes: Floats) -> Floats:
        """Octaves outside the box of measured sizes, float (Q,)."""
        logs, low, high = np.log2(sizes), *self._box
        over: Floats = np.maximum(np.maximum(low - logs, logs - high), 0.0).max(axis=1)
        return over

    def nearest(self, sizes: Floats) -> Floats:
        """Octaves to the nearest measured sizes, float (Q,)."""
        apart = np.log2(sizes)[:, None] - np.log2(self.table.sizes)
        octaves: Floats = np.sqrt((apart**2).sum(axis=2)).min(axis=1)
        return octaves

    def predict(self, m: int, n: int, k: int, *, sparse24: bool = False) -> Prediction:
        """Predicts one latency with its interval."""
        sizes = np.array([[m, n, k]], np.float64)
        centre = self.log_us(sizes, sparse24=sparse24)[0]
        spread = _NINETY * self.deviation(sizes, sparse24=sparse24)[0]
        low, us, high = (float(np.exp(centre + side)) for side in (-spread, 0.0, spread))
        outside, nearest = self.outside(sizes)[0], self.nearest(sizes)[0]
        return Prediction(us, low, high, float(outside), float(nearest), self.estimate)

    def _lost(self, sizes: Floats) -> dict[str, Floats]:
        x = self._features(sizes)
        return {name: own.mean(x[name], 0) for name, own in self._processes.items()}

    def _features(self, sizes: Floats) -> dict[str, Floats]:
        # Outside the box the loss stays what it is at its edge; the roofline goes on.
        low, high = self._box
        inside = np.exp2(np.clip(np.log2(sizes), low, high))
        return _features(inside, self.gpu, self.dtype)

    def _odd(self, sizes: Floats) -> Floats:
        step = _ALIGNED_BYTES // BYTES[self.dtype]
        odd: Floats = ((sizes[:, 1:] % step) != 0).any(axis=1).astype(np.float64)
        return odd

    @cached_property
    def _box(self) -> tuple[Floats, Floats]:
        logs = np.log2(self.table.sizes)
        return logs.min(axis=0), logs.max(axis=0)

    @cached_property
    def _processes(self) -> Mapping[str, Process]:
        return {name: self._process(name) for name in QUANTITIES}

    def _process(self, quantity: str) -> Process:
        tables = (self.table, *self.beside) if quantity in _POOLED else (self.table,)
        parameters = np.stack([table.parameters[quantity] for table in tables])
        return Process(_points(tables, quantity), parameters)


def fitted(tables: Sequence[Table]) -> tuple[Table, ...]:
    """Returns all tables of one GPU with their parameters fitted; takes seconds a table."""
    found: list[dict[str, Floats]] = [{} for _ in tables]
    for quantity in QUANTITIES:
        parts = [tuple(tables)] if quantity in _POOLED else [(table,) for table in tables]
        rows = [row for part in parts for row in fit_parameters(_points(part, quantity))]
        for parameters, row in zip(found, rows, strict=True):
            parameters[quantity] = row
    pairs = zip(tables, found, strict=True)
    return tuple(replace(table, parameters=parameters) for table, parameters in pairs)


def _points(tables: tuple[Table, ...], quantity: str) -> Points:
    x, y = zip(*(_observed(table, quantity) for table in tables), strict=True)
    kinds = np.repeat(np.arange(len(tables)), [len(own) for own in y])
    dtypes = [table.dtype for table in tables]
    alike = np.array([[_likeness(a, b) for a in dtypes] for b in dtypes])
    return Points(np.concatenate(x), kinds, np.concatenate(y), alike)


def _likeness(a: str, b: str) -> float:
    if a == b:
        return 1.0
    return _ALIKE if {a, b} == {"bf16", "fp16"} else _RELATED


def _observed(table: Table, quantity: str) -> tuple[Floats, Floats]:
    """Features of the measured points, float (T, D), and the quantity there, (T,)."""
    gpu, sizes = GPUS[table.gpu], table.sizes
    bounds = [log_roofline(sizes, gpu, table.dtype, sparse24=s) for s in (False, True)]
    dense, sparse = (table.log_us - np.column_stack(bounds)).T
    y = {
        "dense": dense,
        "sparse24": sparse,
        "mean": 0.5 * (dense + sparse),
        "ratio": dense - sparse,
        "pooled": dense - sparse,
    }
    return _features(sizes, gpu, table.dtype)[quantity], y[quantity]


def _features(sizes: Floats, gpu: Gpu, dtype: str) -> dict[str, Floats]:
    """What each quantity depends on, float (Q, D): all but one on the dense product's."""
    dense, sparse = (features(sizes, gpu, dtype, sparse24=kind) for kind in (False, True))
    return {
        quantity: (sparse if quantity == "sparse24" else dense)[:, :count]
        for quantity, count in QUANTITIES.items()
    }
