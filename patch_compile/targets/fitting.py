"""Parameters of a `Process` by marginal likelihood; run when a table is made, never later.

Rasmussen and Williams (2006), (5.8) and its gradient (5.9). T: measured points. J: kinds.
P: parameters. V: free parameters, the lengths once and the others of each kind.
"""

import numpy as np
from numpy.typing import NDArray

from patch_compile.targets.features import basis
from patch_compile.targets.process import (
    GROUPS,
    LENGTHS,
    PARAMETERS,
    WEIGHT_VARIANCE,
    Points,
    distance,
    split,
)

__all__ = ["fit_parameters"]

Floats = NDArray[np.float64]

# A weak prior on every log parameter: length 2 (octaves, mostly), deviation 0.15, noise 5 %.
# It decides where a table of few shapes leaves a length undetermined. (P,) each.
_CENTRE = np.where(LENGTHS, np.log(2.0), np.log(0.15))
_CENTRE[-1] = np.log(0.05)
_VARIANCE = np.where(np.arange(PARAMETERS) < PARAMETERS - 1, 1.0, 0.5)
_LOWEST = np.where(LENGTHS, -2.0, -6.0)
_HIGHEST = np.where(LENGTHS, 5.0, 1.5)
_LOWEST[-1], _HIGHEST[-1] = -4.5, -0.5
_STEPS = 30


def fit_parameters(points: Points) -> Floats:
    """Returns the parameters, (J, P), of greatest posterior density."""
    # Imported here, against the house rule: only the making of tables needs it.
    from scipy.optimize import minimize

    kinds = len(points.alike)
    prior, variance, lowest, highest = (
        _free(np.tile(values, (kinds, 1)))
        for values in (_CENTRE, _VARIANCE, _LOWEST, _HIGHEST)
    )
    found = minimize(
        _loss,
        prior,
        (points, prior, variance),
        jac=True,
        method="L-BFGS-B",
        bounds=np.column_stack([lowest, highest]),
        options={"maxiter": _STEPS},
    )
    return _table(found.x)


def _free(parameters: Floats) -> Floats:
    """The free ones, (V,), of parameters (J, P)."""
    return np.concatenate([parameters[0, LENGTHS], parameters[:, ~LENGTHS].ravel()])


def _table(free: Floats) -> Floats:
    """Parameters, (J, P), of the free ones (V,)."""
    lengths, others = np.split(free, [LENGTHS.sum()])
    others = others.reshape(-1, (~LENGTHS).sum())
    parameters = np.empty((len(others), PARAMETERS))
    parameters[:, LENGTHS], parameters[:, ~LENGTHS] = lengths, others
    return parameters


def _loss(
    free: Floats, points: Points, centre: Floats, variance: Floats
) -> tuple[float, Floats]:
    """Negative log posterior density but for a constant, and its gradient, (V,)."""
    groups, noises = split(_table(free))
    noise = np.exp(2 * noises)[points.kinds]
    alike = points.alike[np.ix_(points.kinds, points.kinds)]
    means = basis(points.x)
    covariance = WEIGHT_VARIANCE * alike * (means @ means.T) + np.diag(noise)
    scaled = [alike * _outer(np.exp(own)[points.kinds]) for _, own in groups]
    kernels, falls = [], []
    for columns, (lengths, _), scale in zip(GROUPS, groups, scaled, strict=True):
        r = np.sqrt(3) * distance(points.x[:, columns], points.x[:, columns], lengths)
        falls.append(scale * np.exp(-r))
        kernels.append((1 + r) * falls[-1])
    inverse, half_log_determinant = _inverse(covariance + sum(kernels))
    weights = inverse @ points.off
    loss = 0.5 * points.off @ weights + half_log_determinant
    outer = inverse - _outer(weights)
    # In the order of `_free`: lengths of all groups, then a row of each kind.
    by_length = [
        _by_length(points.x[:, columns] / np.exp(lengths), outer * fall)
        for columns, (lengths, _), fall in zip(GROUPS, groups, falls, strict=True)
    ]
    a_point = [*((outer * kernel).sum(axis=1) for kernel in kernels), noise * np.diag(outer)]
    belongs = np.eye(len(points.alike))[points.kinds]
    by_kind = belongs.T @ np.column_stack(a_point)
    gradient = np.concatenate([*by_length, by_kind.ravel()])
    off = free - centre
    return float(loss + 0.5 * (off**2 / variance).sum()), gradient + off / variance


def _by_length(x: Floats, weights: Floats) -> Floats:
    """Half the sum of `weights` (T, T) times 3 (x_i - x_j)^2, a column of x (T, D).

    That is the Matérn kernel's slope by a log length, but for e^-r, which is in the weights;
    multiplied out, it needs no array (T, T) for each column.
    """
    slope: Floats = 3 * (weights.sum(axis=1) @ x**2 - (x * (weights @ x)).sum(axis=0))
    return slope


def _inverse(covariance: Floats) -> tuple[Floats, float]:
    """The inverse of a covariance, and half the logarithm of its determinant."""
    # As above; half the time of numpy's, which knows no triangles.
    from scipy.linalg.lapack import dpotrf, dpotri

    factor, failed = dpotrf(covariance, lower=1)
    assert not failed, "noise on the diagonal keeps it positive definite"
    lower = np.tril(dpotri(factor, lower=1)[0])
    inverse: Floats = lower + np.tril(lower, -1).T
    return inverse, float(np.log(np.diag(factor)).sum())


def _outer(vector: Floats) -> Floats:
    return np.outer(vector, vector)
