"""Gaussian processes of two Matérn kernels: on sizes, and on what hardware makes of them.

Points of one GPU come in kinds, its dtypes. Kinds share lengths and are alike, each with
deviations and noise of its own: the intrinsic model of coregionalisation (Bonilla, Chai and
Williams, Multi-task Gaussian Process Prediction, 2008). Rasmussen and Williams, Gaussian
Processes for Machine Learning (2006): the kernel is (4.17) with a length a column, the
posterior (2.25) and (2.26), the linear mean (2.39). T: measured points. Q: queries. J: kinds.
P: parameters. D: features, some of the first columns of `features`.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from patch_compile.targets.features import SIZES, basis

__all__ = ["WEIGHT_VARIANCE", "Points", "Process", "distance", "groups", "lengths", "matern"]
__all__ += ["split"]

Floats = NDArray[np.float64]

# Of the mean's slopes: wide beside what is left over the roofline, tenths of a log unit.
WEIGHT_VARIANCE = 0.3


@dataclass(frozen=True, eq=False)
class Points:
    """What was measured, of all kinds.

    Attributes:
        x: float (T, D), features.
        kinds: int (T,), from 0 to J - 1.
        y: float (T,), the quantity there.
        alike: float (J, J), correlations of the kinds, 1 on the diagonal.
    """

    x: Floats
    kinds: NDArray[np.intp]
    y: Floats
    alike: Floats

    @cached_property
    def centres(self) -> Floats:
        """The median of each kind, float (J,)."""
        count = range(len(self.alike))
        medians = [np.median(self.y[self.kinds == kind]) for kind in count]
        return np.array(medians, np.float64)

    @cached_property
    def off(self) -> Floats:
        """How far each point is off its kind's median, float (T,)."""
        return self.y - self.centres[self.kinds]


@dataclass(frozen=True, eq=False)
class Process:
    """The posterior of one quantity.

    Attributes:
        points: measured.
        parameters: float (J, P), for each kind logs of lengths, deviations and noise; the
            lengths of the first are those of all.
    """

    points: Points
    parameters: Floats

    def mean(self, x: Floats, kind: int) -> Floats:
        """Predicts the quantity of one kind at x (Q, D), float (Q,)."""
        shift: Floats = self._covariance(x, np.full(len(x), kind)) @ self._weights
        centre = float(self.points.centres[kind])
        return centre + shift

    def deviation(self, x: Floats, kind: int) -> Floats:
        """Standard deviation of a measurement at x (Q, D), noise included, float (Q,)."""
        across = self._covariance(x, np.full(len(x), kind))
        explained = self._inverse_factor @ across.T
        noise = self._noise[kind]
        own = sum(np.exp(2 * deviations[kind]) for _, deviations in split(self.parameters)[0])
        own = own + WEIGHT_VARIANCE * (basis(x) ** 2).sum(axis=1) + noise
        variance: Floats = own - (explained**2).sum(axis=0)
        deviation: Floats = np.sqrt(np.maximum(variance, noise))
        return deviation

    @cached_property
    def _noise(self) -> Floats:
        noise: Floats = np.exp(2 * self.parameters[:, -1])
        return noise

    def _covariance(self, x: Floats, kinds: NDArray[np.intp]) -> Floats:
        to = self.points
        shared = WEIGHT_VARIANCE * basis(x) @ basis(to.x).T
        for columns, (log_lengths, log_deviations) in zip(
            groups(x.shape[1]), split(self.parameters)[0], strict=True
        ):
            scale = np.exp(log_deviations)
            kernel = matern(x[:, columns], to.x[:, columns], log_lengths)
            shared = shared + np.outer(scale[kinds], scale[to.kinds]) * kernel
        return shared * to.alike[np.ix_(kinds, to.kinds)]

    @cached_property
    def _inverse_factor(self) -> Floats:
        """Inverse of the Cholesky factor of the measured points' covariance."""
        to = self.points
        covariance = self._covariance(to.x, to.kinds) + np.diag(self._noise[to.kinds])
        inverse: Floats = np.linalg.inv(np.linalg.cholesky(covariance)).astype(np.float64)
        return inverse

    @cached_property
    def _weights(self) -> Floats:
        factor = self._inverse_factor
        weights: Floats = factor.T @ (factor @ self.points.off)
        return weights


def groups(features: int) -> tuple[slice, slice]:
    """The columns of either kernel, of so many features."""
    return SIZES, slice(SIZES.stop, features)


def lengths(features: int) -> NDArray[np.bool_]:
    """Which of the parameters are lengths, bool (P,).

    A log length a column and the log deviation, for each group; last the log noise.
    """
    parts = [[True] * (group.stop - group.start) + [False] for group in groups(features)]
    return np.array([*parts[0], *parts[1], False])


def split(parameters: Floats) -> tuple[list[tuple[Floats, Floats]], Floats]:
    """For each group its log lengths and, (J,), log deviations; the log noises, (J,)."""
    found, start = [], 0
    for group in groups(parameters.shape[1] - 3):
        stop = start + group.stop - group.start
        found.append((parameters[0, start:stop], parameters[:, stop]))
        start = stop + 1
    return found, parameters[:, -1]


def matern(a: Floats, b: Floats, log_lengths: Floats) -> Floats:
    """Matérn kernel of smoothness 3/2 between a (Q, D) and b (T, D), float (Q, T)."""
    r = np.sqrt(3) * distance(a, b, log_lengths)
    kernel: Floats = (1 + r) * np.exp(-r)
    return kernel


def distance(a: Floats, b: Floats, log_lengths: Floats) -> Floats:
    """Distances between a (Q, D) and b (T, D) in units of the lengths, float (Q, T)."""
    a, b = a / np.exp(log_lengths), b / np.exp(log_lengths)
    # |a - b|^2 as one product: ten times as fast as the differences, and exact enough.
    squared = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
    apart: Floats = np.sqrt(np.maximum(squared, 0.0))
    return apart
