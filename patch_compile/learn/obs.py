"""Optimal brain surgeon, column by column: SparseGPT, arXiv 2301.00774.

Zeroing w_j of a row costs the layer's output w_j^2 r_j^2, where r_j is the size of what of
input j no later input can make up for, if the later weights of the row are moved so that they
make up for the rest. Columns are gone through once; those passed stay as they are.

N: out features. K: in features. H: X^T X, damped, (K, K). U: upper triangular, (K, K), with
U^T U = H^-1; r_j = 1 / U_jj.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from patch_compile.errors import ModelError
from patch_compile.tiles.pattern import top2_of_4

__all__ = [
    "BLOCK",
    "Chooser",
    "Lowest",
    "Pruned",
    "TwoOfFour",
    "inverse_factor",
    "prune_columns",
    "residuals",
]

# Columns that are compensated for together, and in which `Lowest` compares: the paper's.
BLOCK = 128

# Of the mean of H's diagonal: the paper's.
_DAMPING = 0.01

Values = NDArray[np.float32]


class Chooser(Protocol):
    """Says which weights stay."""

    @property
    def every(self) -> int:
        """Columns that are chosen from together, a divisor of `BLOCK`."""
        ...

    def keep(self, start: int, cost: Values) -> NDArray[np.bool_]:
        """Returns the keep mask of `every` columns (the last may be fewer), bool (N, c).

        Args:
            start: the first of the columns.
            cost: float32 (N, c), of zeroing each weight.
        """
        ...


@dataclass(frozen=True, eq=False)
class TwoOfFour:
    """Keeps two of every four, and all where the tiles are dense.

    Attributes:
        dense: bool (N, K).
    """

    dense: NDArray[np.bool_]
    every: int = 4

    def keep(self, start: int, cost: Values) -> NDArray[np.bool_]:
        """Returns the dearest two, and what is dense."""
        return top2_of_4(cost) | self.dense[:, start : start + self.every]


@dataclass(frozen=True, eq=False)
class Lowest:
    """Loses the cheapest of every block of columns, wherever they are.

    Attributes:
        counts: how many weights each block loses, (blocks,).
    """

    counts: NDArray[np.int64]
    every: int = BLOCK

    def keep(self, start: int, cost: Values) -> NDArray[np.bool_]:
        """Returns all but the block's cheapest; of equals the first in row order go."""
        order = np.argsort(cost, axis=None, kind="stable")
        kept = np.ones(cost.size, np.bool_)
        kept[order[: self.counts[start // self.every]]] = False
        return kept.reshape(cost.shape)


def residuals(gram: NDArray[Any]) -> Values:
    """Returns r, float32 (K,), from X^T X, float (K, K).

    Raises:
        ModelError: if the matrix holds NaN or Inf, or no input was ever other than 0.
    """
    return np.ascontiguousarray(_upper(gram).diagonal()).astype(np.float32)


def inverse_factor(gram: NDArray[Any]) -> Values:
    """Returns U, float32 (K, K), from X^T X, float (K, K); raises as `residuals`."""
    from scipy.linalg import solve_triangular

    upper = _upper(gram)
    inverse = solve_triangular(upper, np.eye(len(upper)))
    return np.ascontiguousarray(inverse, np.float32)


def _upper(gram: NDArray[Any]) -> NDArray[np.float64]:
    """Returns the upper triangular U^-1, float64 (K, K): U^-1 U^-T = H."""
    damped = gram.astype(np.float64)
    mean = float(damped.diagonal().mean())
    if not (np.isfinite(damped).all() and mean > 0):
        raise ModelError(
            "inputs | of a layer are NaN, infinite or all 0 on the calibration text; load the "
            "model as fp32, or leave the layer out (--ignore)"
        )
    damped.flat[:: len(damped) + 1] += _DAMPING * mean
    # Cholesky's factor is lower; that of the reversed matrix, reversed, is upper.
    upper = np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]
    return upper.astype(np.float64, copy=False)


@dataclass(frozen=True, eq=False)
class Pruned:
    """A weight without some of its elements.

    Attributes:
        weight: float32 (N, K); a row that keeps everything is as it was.
        keep: bool (N, K).
        cost: float32 (N, K), of zeroing each element, when it was chosen or not.
    """

    weight: Values
    keep: NDArray[np.bool_]
    cost: Values


def prune_columns(weight: NDArray[Any], factor: Values, chooser: Chooser) -> Pruned:
    """Zeroes weights, and moves the others to make up for them.

    Args:
        weight: float (N, K); not changed.
        factor: U.
        chooser: of the weights that stay.
    """
    # By columns, (K, N), which are read and written one at a time.
    columns = np.array(weight.T, np.float32, order="C")
    keep, cost = np.ones(columns.shape, np.bool_), np.empty_like(columns)
    for start in range(0, len(columns), BLOCK):
        block = slice(start, min(start + BLOCK, len(columns)))
        part = _Block(columns[block], factor[block, block], keep[block], cost[block])
        columns[block.stop :] -= factor[block, block.stop :].T @ part.prune(chooser, start)
    turned = np.ascontiguousarray
    return Pruned(turned(columns.T), turned(keep.T), turned(cost.T))


@dataclass(frozen=True, eq=False)
class _Block:
    """A block of columns of a weight, (b, N), and its part of U, (b, b)."""

    columns: Values
    factor: Values
    keep: NDArray[np.bool_]
    cost: Values

    def prune(self, chooser: Chooser, start: int) -> Values:
        """Prunes the columns, and returns what later ones have to make up for, (b, N)."""
        inverse = self.factor.diagonal()
        errors = np.empty_like(self.columns)
        for i, column in enumerate(self.columns):
            if i % chooser.every == 0:
                self._choose(slice(i, i + chooser.every), chooser, start)
            errors[i] = np.where(self.keep[i], np.float32(0), column / inverse[i])
            self.columns[i:] -= np.outer(self.factor[i, i:], errors[i])
            # What the line above left of a zeroed weight is rounding.
            column *= self.keep[i]
        return errors

    def _choose(self, chosen: slice, chooser: Chooser, start: int) -> None:
        inverse = self.factor.diagonal()[chosen, None]
        self.cost[chosen] = np.square(self.columns[chosen] / inverse)
        self.keep[chosen] = chooser.keep(start + chosen.start, self.cost[chosen].T).T
