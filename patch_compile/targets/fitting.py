"""Parameters of a `Process` by marginal likelihood; run when a table is made, never later.

Rasmussen and Williams (2006), (5.8) and its gradient (5.9). T: measured points. P: parameters.
"""

import numpy as np
from numpy.typing import NDArray

from patch_compile.targets.features import basis
from patch_compile.targets.process import GROUPS, WEIGHT_VARIANCE, split

__all__ = ["fit_parameters"]

Floats = NDArray[np.float64]

# A weak prior on every log parameter: length 2 (octaves, mostly), deviation 0.15, noise 5 %.
# It decides where a table of few shapes leaves a length undetermined.
_LENGTH, _DEVIATION, _NOISE = np.log(2.0), np.log(0.15), np.log(0.05)
_PRIOR_VARIANCE, _NOISE_VARIANCE = 1.0, 0.5
_STEPS = 60


def fit_parameters(x: Floats, y: Floats) -> Floats:
    """Returns the parameters, (P,), of greatest posterior density.

    Args:
        x: float (T, 8), features.
        y: float (T,), values.
    """
    # Imported here, against the house rule: only the making of tables needs it.
    from scipy.optimize import minimize

    start, bounds, variance = [], [], []
    for group in GROUPS:
        count = group.stop - group.start
        start += [_LENGTH] * count + [_DEVIATION]
        bounds += [(-2.0, 5.0)] * count + [(-6.0, 1.5)]
        variance += [_PRIOR_VARIANCE] * (count + 1)
    prior = np.array([*start, _NOISE]), np.array([*variance, _NOISE_VARIANCE])
    bounds.append((-4.5, -0.5))
    found = minimize(
        _loss,
        prior[0],
        (x, y - np.median(y), *prior),
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": _STEPS},
    )
    best: Floats = found.x
    return best


def _loss(
    parameters: Floats, x: Floats, y: Floats, centre: Floats, variance: Floats
) -> tuple[float, Floats]:
    """Negative log posterior density but for a constant, and its gradient."""
    noise = float(np.exp(2 * parameters[-1]))
    covariance = WEIGHT_VARIANCE * basis(x) @ basis(x).T + noise * np.eye(len(y))
    slopes: list[Floats] = []
    for columns, (lengths, deviation) in zip(GROUPS, split(parameters)[0], strict=True):
        kernel, by_length = _kernel(x[:, columns], lengths)
        scale = np.exp(2 * deviation)
        covariance += scale * kernel
        slopes += [scale * slope for slope in by_length] + [2 * scale * kernel]
    slopes.append(2 * noise * np.eye(len(y)))
    factor = np.linalg.inv(np.linalg.cholesky(covariance))
    inverse = factor.T @ factor
    weights = inverse @ y
    loss = 0.5 * y @ weights - np.log(np.diag(factor)).sum()
    outer = inverse - np.outer(weights, weights)
    gradient = np.array([0.5 * (outer * slope).sum() for slope in slopes])
    off = parameters - centre
    return float(loss + 0.5 * (off**2 / variance).sum()), gradient + off / variance


def _kernel(x: Floats, log_lengths: Floats) -> tuple[Floats, list[Floats]]:
    """The Matérn kernel among x (T, D), and its slopes by each log length."""
    squares = [
        np.subtract.outer(column, column) ** 2 / np.exp(2 * length)
        for column, length in zip(x.T, log_lengths, strict=True)
    ]
    r = np.sqrt(3 * np.maximum(sum(squares), 1e-16))
    decay = np.exp(-r)
    return (1 + r) * decay, [3 * square * decay for square in squares]
