"""Intervals hold what they promise, and nothing is said that the noise could say."""

import math

import numpy as np
import pytest

from patch_compile.bench.statistics import (
    Interval,
    judge,
    median_interval,
    noise_floor,
    ratio_interval,
)


def test_intervals_hold_the_true_median_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    # Latencies: a floor and a long tail. The median of an exponential is ln 2.
    truth = 1.0 + math.log(2.0)
    found = [median_interval(1.0 + rng.exponential(1.0, 30), 0.9, seed) for seed in range(200)]
    held = np.mean([interval.low <= truth <= interval.high for interval in found])
    # 0.9 within three standard errors of 200 draws, and what 30 samples lack.
    assert 0.82 <= held <= 0.97
    assert all(interval.low <= interval.median <= interval.high for interval in found)


def test_more_confidence_is_a_wider_interval(rng: np.random.Generator) -> None:
    samples = rng.exponential(1.0, 40)
    narrow, wide = (median_interval(samples, share, 0) for share in (0.6, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_equal_seeds_give_equal_intervals(rng: np.random.Generator) -> None:
    samples = rng.exponential(1.0, 20)
    assert median_interval(samples, 0.95, 3) == median_interval(samples, 0.95, 3)


def test_a_machine_that_slows_down_leaves_the_ratio_alone(rng: np.random.Generator) -> None:
    speed = np.linspace(1.0, 3.0, 30)
    found = ratio_interval(1.1 * speed, speed, 0.95, 0)
    np.testing.assert_allclose([found.low, found.median, found.high], 1.1, rtol=1e-12)


def test_one_slow_round_moves_the_median_hardly(rng: np.random.Generator) -> None:
    base = 1.0 + 0.01 * rng.standard_normal(31)
    stalled = base.copy()
    stalled[7] *= 50
    assert ratio_interval(stalled, base, 0.95, 0).median == 1.0


def test_samples_without_spread_have_an_interval() -> None:
    assert median_interval(np.full(9, 0.25), 0.95, 0) == Interval(0.25, 0.25, 0.25)


@pytest.mark.parametrize(
    ("ratio", "floor", "verdict"),
    [
        (Interval(0.90, 0.88, 0.92), 0.03, "faster"),
        (Interval(1.10, 1.08, 1.12), 0.03, "slower"),
        # The interval reaches into the noise, from either side.
        (Interval(0.95, 0.92, 0.98), 0.03, "inside the noise"),
        (Interval(1.05, 1.02, 1.08), 0.03, "inside the noise"),
        # Wide intervals show nothing, however far the median.
        (Interval(1.50, 0.70, 2.50), 0.03, "inside the noise"),
        # A floor of its own, where two equal sessions differ much.
        (Interval(0.90, 0.88, 0.92), 0.15, "inside the noise"),
        (Interval(1.0, 1.0, 1.0), 0.0, "inside the noise"),
    ],
)
def test_a_verdict_needs_the_whole_interval_beyond_the_noise(
    ratio: Interval, floor: float, verdict: str
) -> None:
    assert judge(ratio, floor) == verdict


@pytest.mark.parametrize(
    ("again", "floor"),
    [(Interval(1.0, 0.97, 1.01), 0.03), (Interval(1.01, 1.0, 1.04), 0.04)],
)
def test_the_noise_is_the_farther_end(again: Interval, floor: float) -> None:
    assert noise_floor(again) == pytest.approx(floor)
