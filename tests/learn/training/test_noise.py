"""The noise is what it says it is, and the same wherever it is drawn."""

import numpy as np
import torch
from scipy import stats

from patch_compile.learn.training.noise import Draw, gumbel, logistic

CPU = torch.device("cpu")


def test_gumbel_noise_is_gumbel() -> None:
    noise = gumbel((500, 200), Draw(0, 0, 0).generator("w", CPU)).numpy().ravel()
    # Kolmogorov-Smirnov over 100,000 numbers: 16 bits and chance together stay below 0.006.
    assert stats.kstest(noise, stats.gumbel_r.cdf).statistic < 0.006
    assert np.isfinite(noise).all()


def test_logistic_noise_is_the_difference_of_two_gumbels() -> None:
    noise = logistic((500, 200), Draw(0, 0, 0).generator("w", CPU)).numpy().ravel()
    assert stats.kstest(noise, stats.logistic.cdf).statistic < 0.006


def test_neighbouring_places_are_independent() -> None:
    places = [Draw(0, 0, 0), Draw(1, 0, 0), Draw(0, 1, 0), Draw(0, 0, 1)]
    noise = [logistic((10_000,), place.generator("w", CPU)).numpy() for place in places]
    noise.append(logistic((10_000,), places[0].generator("v", CPU)).numpy())
    correlations = np.corrcoef(noise)[~np.eye(5, dtype=bool)]
    # Five standard errors of a correlation of 10,000 pairs.
    assert np.abs(correlations).max() < 0.05


def test_a_place_draws_the_same_again() -> None:
    first, again = (gumbel((7, 5), Draw(3, 4, 5).generator("w", CPU)) for _ in range(2))
    assert torch.equal(first, again)
