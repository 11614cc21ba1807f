"""Against the surgeon's textbook formulas, in float64, with an explicit inverse a column."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from patch_compile.errors import ModelError
from patch_compile.learn.obs import (
    BLOCK,
    Lowest,
    TwoOfFour,
    inverse_factor,
    prune_columns,
    residuals,
)

Array = NDArray[np.float64]

# Float32 through a few hundred columns.
CLOSE: dict[str, Any] = {"rtol": 2e-3, "atol": 2e-4}


def _gram(k: int, rng: np.random.Generator) -> Array:
    """Of correlated inputs of different sizes."""
    x = rng.standard_normal((3 * k, k)) @ (np.eye(k) + 0.3 * rng.standard_normal((k, k)))
    gram: Array = x.T @ x
    return gram


def _damped(gram: Array) -> Array:
    return gram + 0.01 * gram.diagonal().mean() * np.eye(len(gram))


def _surgeon(weight: Array, gram: Array, chosen: Any) -> tuple[Array, NDArray[np.bool_]]:
    """Removes one weight after the other; `chosen(j, weight, r)` gives keep columns or None.

    Eliminating w_j moves the weights behind it by -w_j / [H^-1]_00 times H^-1's first column,
    H over columns j and later (arXiv 2301.00774, equation 3).
    """
    weight, keep = weight.copy(), np.ones(weight.shape, np.bool_)
    h, k = _damped(gram), weight.shape[1]
    left = np.array([np.linalg.inv(h[j:, j:])[0, 0] for j in range(k)])
    for j in range(k):
        decided = chosen(j, weight, left)
        if decided is not None:
            keep[:, j : j + decided.shape[1]] = decided
        inverse = np.linalg.inv(h[j:, j:])
        error = np.where(keep[:, j], 0.0, weight[:, j]) / inverse[0, 0]
        weight[:, j:] -= np.outer(error, inverse[0])
        weight[:, j] *= keep[:, j]
    return weight, keep


def _two_of_four(dense: NDArray[np.bool_]) -> Any:
    def chosen(j: int, weight: Array, left: Array) -> Any:
        if j % 4:
            return None
        cost = weight[:, j : j + 4] ** 2 / left[j : j + 4]
        return (np.argsort(np.argsort(-cost, 1), 1) < 2) | dense[:, j : j + 4]

    return chosen


def _lowest(counts: list[int]) -> Any:
    def chosen(j: int, weight: Array, left: Array) -> Any:
        if j % BLOCK:
            return None
        cost = weight[:, j : j + BLOCK] ** 2 / left[j : j + BLOCK]
        lost = np.sort(cost, axis=None)[: counts[j // BLOCK]]
        return cost > (lost[-1] if len(lost) else -1.0)

    return chosen


def test_factor_squared_is_the_inverse_and_its_diagonal_the_residuals(
    rng: np.random.Generator,
) -> None:
    gram = _gram(12, rng)
    factor = inverse_factor(gram).astype(np.float64)
    assert np.array_equal(factor, np.triu(factor))
    np.testing.assert_allclose(factor.T @ factor, np.linalg.inv(_damped(gram)), rtol=1e-3)
    np.testing.assert_allclose(residuals(gram), 1.0 / factor.diagonal(), rtol=1e-5)


def test_residual_is_what_later_inputs_cannot_make_up_for(rng: np.random.Generator) -> None:
    gram = _gram(8, rng)
    h, found = _damped(gram), residuals(gram)
    for j in range(8):
        later = np.linalg.solve(h[j + 1 :, j + 1 :], h[j + 1 :, j])
        np.testing.assert_allclose(found[j] ** 2, h[j, j] - h[j, j + 1 :] @ later, rtol=1e-3)


@pytest.mark.parametrize("k", [8, 132, 172])
def test_two_of_four_with_dense_tiles_is_the_surgeon_s(
    k: int, rng: np.random.Generator
) -> None:
    weight, gram = rng.standard_normal((6, k)), _gram(k, rng)
    dense = np.zeros((6, k), np.bool_)
    dense[0] = dense[1:3, 4:] = True
    pruned = prune_columns(weight, inverse_factor(gram), TwoOfFour(dense))
    expected, keep = _surgeon(weight, gram, _two_of_four(dense))
    assert np.array_equal(pruned.keep, keep)
    np.testing.assert_allclose(pruned.weight, expected, **CLOSE)
    # A row that loses nothing has nothing to make up for; dense tiles lose nothing.
    assert np.array_equal(pruned.weight[0], weight[0].astype(np.float32))
    assert pruned.keep[dense].all()
    assert (pruned.weight[~pruned.keep] == 0.0).all()
    counts = pruned.keep.reshape(6, -1, 4).sum(2)
    assert (counts[~dense.reshape(6, -1, 4)[:, :, 0]] == 2).all()


def test_lowest_of_every_block_go_to_the_number(rng: np.random.Generator) -> None:
    k, counts = 300, [301, 0, 17]
    weight, gram = rng.standard_normal((5, k)), _gram(k, rng)
    pruned = prune_columns(weight, inverse_factor(gram), Lowest(np.array(counts)))
    expected, keep = _surgeon(weight, gram, _lowest(counts))
    assert np.array_equal(pruned.keep, keep)
    np.testing.assert_allclose(pruned.weight, expected, **CLOSE)
    lost = [int((~pruned.keep[:, i : i + BLOCK]).sum()) for i in range(0, k, BLOCK)]
    assert lost == counts


def test_new_weights_err_less_than_the_old_ones_masked(rng: np.random.Generator) -> None:
    weight, gram = rng.standard_normal((16, 64)), _gram(64, rng)
    none = TwoOfFour(np.zeros(weight.shape, np.bool_))
    pruned = prune_columns(weight, inverse_factor(gram), none)

    def error(other: NDArray[Any]) -> float:
        moved = other - weight
        return float(np.einsum("nk,kl,nl->", moved, gram, moved))

    assert error(pruned.weight) < 0.6 * error(weight * pruned.keep)


@pytest.mark.parametrize(
    "gram", [np.zeros((4, 4)), np.full((4, 4), np.nan), np.diag([1.0, np.inf, 1.0, 1.0])]
)
def test_inputs_that_say_nothing_are_refused(gram: Array) -> None:
    with pytest.raises(ModelError, match=r"inputs \| of a layer are NaN, infinite or all 0"):
        residuals(gram)


def test_an_input_that_never_came_goes_first(rng: np.random.Generator) -> None:
    gram = _gram(4, rng)
    gram[1], gram[:, 1] = 0.0, 0.0
    none = TwoOfFour(np.zeros((3, 4), np.bool_))
    pruned = prune_columns(rng.standard_normal((3, 4)), inverse_factor(gram), none)
    assert not pruned.keep[:, 1].any()
