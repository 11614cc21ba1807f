"""N: out features. K: in features."""

from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from patch_compile.learn.descent import descend, kept_first
from patch_compile.tiles.pattern import top2_of_4


def _case(n: int, k: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    # Correlated inputs with means: there is something to cancel.
    x = rng.normal(size=(4 * k, k // 2)) @ rng.normal(size=(k // 2, k)) + rng.normal(size=k)
    x += 0.1 * rng.normal(size=x.shape)
    return rng.normal(size=(n, k)).astype(np.float32), (x.T @ x / len(x)).astype(np.float32)


def _error(
    weight: NDArray[np.float32], gram: NDArray[np.float32], keep: NDArray[np.bool_]
) -> NDArray[np.float64]:
    lost = (weight * ~keep).astype(np.float64)
    error: NDArray[np.float64] = np.einsum("nk,kl,nl->n", lost, gram.astype(float), lost)
    return error


def _wanda(weight: NDArray[np.float32], gram: NDArray[np.float32]) -> NDArray[np.bool_]:
    return top2_of_4(np.abs(weight) * np.sqrt(gram.diagonal()))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(1, 40), st.integers(0, 99))
def test_error_never_rises_and_masks_stay_2_of_4(n: int, groups: int, seed: int) -> None:
    weight, gram = _case(n, 4 * groups, seed)
    start = _wanda(weight, gram)
    keep = descend(weight, gram, start)
    assert (keep.reshape(n, groups, 4).sum(2) == 2).all()
    assert (_error(weight, gram, keep) <= _error(weight, gram, start) * (1 + 1e-4)).all()


@pytest.mark.parametrize("k", [8, 64, 68, 132])
def test_no_group_can_lower_the_error_alone(k: int) -> None:
    weight, gram = _case(3, k, k)
    keep = descend(weight, gram, _wanda(weight, gram), sweeps=100)
    least = _error(weight, gram, keep)
    for group, pair in product(range(k // 4), combinations(range(4), 2)):
        other = keep.copy()
        other[:, 4 * group : 4 * group + 4] = True
        other[:, [4 * group + place for place in pair]] = False
        # A change below a ten-thousandth of the group's own error is not taken.
        assert (_error(weight, gram, other) >= least * (1 - 1e-3)).all()


def test_two_groups_find_the_best_of_all_36_masks_from_some_start() -> None:
    weight, gram = _case(1, 8, 3)
    pairs = list(combinations(range(4), 2))
    masks = []
    for a, b in product(pairs, pairs):
        keep = np.ones((1, 8), np.bool_)
        keep[0, list(a)] = keep[0, [4 + place for place in b]] = False
        masks.append(keep)
    best = min(_error(weight, gram, keep)[0] for keep in masks)
    found = [_error(weight, gram, descend(weight, gram, keep))[0] for keep in masks]
    assert min(found) == pytest.approx(best, rel=1e-4)


def test_independent_inputs_leave_wanda_as_it_is() -> None:
    weight, gram = _case(4, 32, 0)
    gram = np.diag(gram.diagonal())
    start = _wanda(weight, gram)
    assert np.array_equal(descend(weight, gram, start), start)


def test_correlated_inputs_gain_much() -> None:
    weight, gram = _case(16, 128, 1)
    start = _wanda(weight, gram)
    keep = descend(weight, gram, start)
    assert _error(weight, gram, keep).sum() < 0.7 * _error(weight, gram, start).sum()


def test_saliencies_are_handed_out_anew_within_groups() -> None:
    rng = np.random.default_rng(5)
    saliency = rng.random((6, 24)).astype(np.float32)
    keep = top2_of_4(rng.random((6, 24)))
    made = kept_first(saliency, keep)
    assert np.array_equal(top2_of_4(made), keep)
    for a, b in zip(made.reshape(-1, 4), saliency.reshape(-1, 4), strict=True):
        assert sorted(a) == sorted(b)
