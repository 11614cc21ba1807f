"""Gaussian processes of two Matérn kernels: on sizes, and on what hardware makes of them.

Rasmussen and Williams, Gaussian Processes for Machine Learning (2006): the kernel is (4.17)
with a length a column, the posterior (2.25) and (2.26), the linear mean (2.39). T: measured
points. Q: queries. P: parameters.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from patch_compile.targets.features import PHYSICS, SIZES, basis

__all__ = ["GROUPS", "PARAMETERS", "WEIGHT_VARIANCE", "Process", "matern"]

Floats = NDArray[np.float64]

GROUPS = (SIZES, PHYSICS)
# For each group a log length a column and the log deviation; last the log noise.
PARAMETERS = sum(group.stop - group.start + 1 for group in GROUPS) + 1

# Of the mean's slopes: wide beside what is left over the roofline, tenths of a log unit.
WEIGHT_VARIANCE = 0.3


@dataclass(frozen=True, eq=False)
class Process:
    """The posterior of one quantity.

    Attributes:
        x: float (T, 8), features of the measured points.
        y: float (T,), the quantity there.
        parameters: float (P,), logs of lengths, deviations and noise.
    """

    x: Floats
    y: Floats
    parameters: Floats

    def mean(self, x: Floats) -> Floats:
        """Predicts the quantity at x (Q, 8), float (Q,)."""
        return self._centre + self._covariance(x) @ self._weights

    def deviation(self, x: Floats) -> Floats:
        """Standard deviation of a measurement at x (Q, 8), noise included, float (Q,)."""
        explained = self._inverse_factor @ self._covariance(x).T
        own = sum(np.exp(2 * d) for _, d in split(self.parameters)[0])
        own = own + WEIGHT_VARIANCE * (basis(x) ** 2).sum(axis=1) + self._noise
        variance: Floats = own - (explained**2).sum(axis=0)
        return np.sqrt(np.maximum(variance, self._noise))

    @property
    def _noise(self) -> float:
        return float(np.exp(2 * self.parameters[-1]))

    @cached_property
    def _centre(self) -> float:
        return float(np.median(self.y))

    def _covariance(self, x: Floats) -> Floats:
        shared = WEIGHT_VARIANCE * basis(x) @ basis(self.x).T
        for columns, (lengths, deviation) in zip(
            GROUPS, split(self.parameters)[0], strict=True
        ):
            kernel = matern(x[:, columns], self.x[:, columns], lengths)
            shared = shared + np.exp(2 * deviation) * kernel
        return shared

    @cached_property
    def _inverse_factor(self) -> Floats:
        """Inverse of the Cholesky factor of the measured points' covariance."""
        covariance = self._covariance(self.x) + self._noise * np.eye(len(self.y))
        inverse: Floats = np.linalg.inv(np.linalg.cholesky(covariance)).astype(np.float64)
        return inverse

    @cached_property
    def _weights(self) -> Floats:
        factor = self._inverse_factor
        weights: Floats = factor.T @ (factor @ (self.y - self._centre))
        return weights


def split(parameters: Floats) -> tuple[list[tuple[Floats, float]], float]:
    """For each group its log lengths and log deviation; the log noise."""
    groups, start = [], 0
    for group in GROUPS:
        stop = start + group.stop - group.start
        groups.append((parameters[start:stop], float(parameters[stop])))
        start = stop + 1
    return groups, float(parameters[-1])


def matern(a: Floats, b: Floats, log_lengths: Floats) -> Floats:
    """Matérn kernel of smoothness 3/2 between a (Q, D) and b (T, D), float (Q, T)."""
    a, b = a / np.exp(log_lengths), b / np.exp(log_lengths)
    # |a - b|^2 as one product: ten times as fast as the differences, and exact enough.
    squared = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
    r = np.sqrt(3 * np.maximum(squared, 0.0))
    kernel: Floats = (1 + r) * np.exp(-r)
    return kernel
