"""Latencies of any product, from those of a table.

A latency is the roofline's times what kernels lose on it. The logarithm of the loss is
predicted twice, and averaged: for the dense and the 2:4 product each alone, and through
their mean and their ratio, which share much. M: tokens. N: out features. K: in features.
Q: queries.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from patch_compile.targets.datasheets import BYTES, GPUS, Gpu
from patch_compile.targets.features import features, log_roofline
from patch_compile.targets.fitting import fit_parameters
from patch_compile.targets.process import Process
from patch_compile.targets.table import Table

__all__ = ["LatencyModel", "Prediction", "fitted"]

Floats = NDArray[np.float64]

# Two sides of a normal distribution that hold 90 %.
_NINETY = 1.645

# Widening of the interval, in log units, by what no measured point shows. Assumed: there is
# nothing to fit them to.
_PER_OCTAVE_OUTSIDE = 0.1
_UNALIGNED = 0.2
_BORROWED = 0.25

# Tensor cores load 16 bytes at a time; other sizes fall back to slower kernels.
_ALIGNED_BYTES = 16


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
    """

    table: Table
    gpu: Gpu
    dtype: str

    @property
    def estimate(self) -> bool:
        """Whether the table is of another GPU or dtype."""
        return self.gpu is not GPUS[self.table.gpu] or self.dtype != self.table.dtype

    def log_us(self, sizes: Floats, *, sparse24: bool) -> Floats:
        """Log microseconds at sizes (Q, 3), float (Q,)."""
        alone, mean, ratio = self._features(sizes, sparse24=sparse24)
        half = -0.5 if sparse24 else 0.5
        process = self._processes
        lost = process["sparse24" if sparse24 else "dense"].mean(alone)
        both = process["mean"].mean(mean) + half * process["ratio"].mean(ratio)
        bound = log_roofline(sizes, self.gpu, self.dtype, sparse24=sparse24)
        return bound + 0.5 * (lost + both)

    def deviation(self, sizes: Floats, *, sparse24: bool) -> Floats:
        """Standard deviation of a measured log latency at sizes (Q, 3), float (Q,)."""
        alone, mean, ratio = self._features(sizes, sparse24=sparse24)
        process = self._processes
        lost = process["sparse24" if sparse24 else "dense"].deviation(alone)
        both = process["mean"].deviation(mean) ** 2
        both = both + 0.25 * process["ratio"].deviation(ratio) ** 2
        extra = _PER_OCTAVE_OUTSIDE * self.outside(sizes) + _UNALIGNED * self._odd(sizes)
        extra = extra + _BORROWED * self.estimate
        return np.sqrt(0.5 * (lost**2 + both) + extra**2)

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

    def _features(self, sizes: Floats, *, sparse24: bool) -> tuple[Floats, Floats, Floats]:
        # Outside the box the loss stays what it is at its edge; the roofline goes on.
        low, high = self._box
        inside = np.exp2(np.clip(np.log2(sizes), low, high))
        # `mean` and `ratio` belong to both kinds: they take the dense product's features.
        dense = features(inside, self.gpu, self.dtype, sparse24=False)
        if not sparse24:
            return dense, dense, dense
        return features(inside, self.gpu, self.dtype, sparse24=True), dense, dense

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
        return {
            name: Process(*observed, self.table.parameters[name])
            for name, observed in _observed(self.table).items()
        }


def fitted(table: Table) -> Table:
    """Returns the table with its parameters fitted; takes seconds."""
    parameters = {name: fit_parameters(*xy) for name, xy in _observed(table).items()}
    return replace(table, parameters=parameters)


def _observed(table: Table) -> dict[str, tuple[Floats, Floats]]:
    """For each of `QUANTITIES` the features of the measured points, and its values there."""
    gpu, sizes = GPUS[table.gpu], table.sizes
    x = [features(sizes, gpu, table.dtype, sparse24=sparse) for sparse in (False, True)]
    bounds = [log_roofline(sizes, gpu, table.dtype, sparse24=s) for s in (False, True)]
    dense, sparse = (table.log_us - np.column_stack(bounds)).T
    return {
        "dense": (x[0], dense),
        "sparse24": (x[1], sparse),
        "mean": (x[0], 0.5 * (dense + sparse)),
        "ratio": (x[0], dense - sparse),
    }
