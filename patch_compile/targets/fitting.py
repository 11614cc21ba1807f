"""Parameters of a `Process` by marginal likelihood; run when a table is made, never later.

Rasmussen and Williams (2006), (5.8) and its gradient (5.9). T: measured points. J: kinds.
P: parameters. V: free parameters, the lengths once and the others of each kind.
"""

import numpy as np
from numpy.typing import NDArray

from patch_compile.targets.features import basis
from patch_compile.targets.process import (
    WEIGHT_VARIANCE,
    Points,
    distance,
    groups,
    lengths,
    split,
)

__all__ = ["all_parameters", "fit_parameters", "free_parameters"]

Floats = NDArray[np.float64]

# A weak prior on every log parameter: length 2 (octaves, mostly), deviation 0.15, noise 5 %.
# It decides where a table of few shapes leaves a length undetermined. Columns: centre,
# variance, least and greatest.
_LENGTH = (np.log(2.0), 1.0, -2.0, 5.0)
_DEVIATION = (np.log(0.15), 1.0, -6.0, 1.5)
_NOISE = (np.log(0.05), 0.5, -4.5, -0.5)
_STEPS = 40


def fit_parameters(points: Points) -> Floats:
    """Returns the parameters, (J, P), of greatest posterior density."""
    # Imported here, against the house rule: only the making of tables needs it.
    from scipy.optimize import minimize

    features, kinds = points.x.shape[1], len(points.alike)
    each = [_LENGTH if is_length else _DEVIATION for is_length in lengths(features)[:-1]]
    columns = np.array([*each, _NOISE]).T
    prior, variance, least, greatest = (
        free_parameters(np.tile(column, (kinds, 1))) for column in columns
    )
    found = minimize(
        _loss,
        prior,
        (points, prior, variance),
        jac=True,
        method="L-BFGS-B",
        bounds=np.column_stack([least, greatest]),
        options={"maxiter": _STEPS},
    )
    return all_parameters(found.x, features)


def free_parameters(parameters: Floats) -> Floats:
    """The free ones, (V,), of parameters (J, P)."""
    shared = lengths(parameters.shape[1] - 3)
    return np.concatenate([parameters[0, shared], parameters[:, ~shared].ravel()])


def all_parameters(free: Floats, features: int) -> Floats:
    """Parameters, (J, P), of the free ones (V,)."""
    shared = lengths(features)
    own = free[features:].reshape(-1, (~shared).sum())
    parameters = np.empty((len(own), len(shared)))
    parameters[:, shared], parameters[:, ~shared] = free[:features], own
    return parameters


def _loss(
    free: Floats, points: Points, centre: Floats, variance: Floats
) -> tuple[float, Floats]:
    """Negative log posterior density but for a constant, and its gradient, (V,)."""
    features = points.x.shape[1]
    columns = groups(features)
    parts, noises = split(all_parameters(free, features))
    noise = np.exp(2 * noises)[points.kinds]
    alike = points.alike[np.ix_(points.kinds, points.kinds)]
    means = basis(points.x)
    covariance = WEIGHT_VARIANCE * alike * (means @ means.T) + np.diag(noise)
    scaled = [alike * _outer(np.exp(own)[points.kinds]) for _, own in parts]
    kernels, falls = [], []
    for group, (log_lengths, _), scale in zip(columns, parts, scaled, strict=True):
        r = np.sqrt(3) * distance(points.x[:, group], points.x[:, group], log_lengths)
        falls.append(scale * np.exp(-r))
        kernels.append((1 + r) * falls[-1])
    inverse, half_log_determinant = _inverse(covariance + sum(kernels))
    weights = inverse @ points.off
    loss = 0.5 * points.off @ weights + half_log_determinant
    outer = inverse - _outer(weights)
    # In the order of `free_parameters`: lengths of all groups, then a row of each kind.
    by_length = [
        _by_length(points.x[:, group] / np.exp(log_lengths), outer * fall)
        for group, (log_lengths, _), fall in zip(columns, parts, falls, strict=True)
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
    from scipy.linalg import get_lapack_funcs

    potrf, potri = get_lapack_funcs(("potrf", "potri"), (covariance,))
    factor, failed = potrf(covariance, lower=1)
    assert not failed, "noise on the diagonal keeps it positive definite"
    lower = np.tril(potri(factor, lower=1)[0])
    inverse: Floats = lower + np.tril(lower, -1).T
    return inverse, float(np.log(np.diag(factor)).sum())


def _outer(vector: Floats) -> Floats:
    return np.outer(vector, vector)
