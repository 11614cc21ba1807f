"""Medians, their intervals, and what may be said of a difference. Pure functions.

Samples of one round are taken one after the other, so that a machine that slows down slows
down all of them: a ratio is the median of the rounds' ratios, not a ratio of medians.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from patch_compile._require import require

__all__ = ["Interval", "Verdict", "judge", "median_interval", "noise_floor", "ratio_interval"]

Verdict = Literal["faster", "slower", "inside the noise"]

_RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A median and the interval that holds it with the confidence asked for."""

    median: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """Returns the three numbers by name."""
        return {"median": self.median, "low": self.low, "high": self.high}


def median_interval(samples: NDArray[np.float64], confidence: float, seed: int) -> Interval:
    """Returns the median of samples with its bootstrap percentile interval.

    Args:
        samples: float64 (rounds,), positive.
        confidence: of the interval, 0 to 1.
        seed: of the resampling.
    """
    middle = float(np.median(samples))
    if np.ptp(samples) == 0.0:
        return Interval(middle, middle, middle)
    found: Any = require("scipy.stats", "cpu").bootstrap(
        (samples,),
        np.median,
        n_resamples=_RESAMPLES,
        confidence_level=confidence,
        method="percentile",
        random_state=np.random.default_rng(seed),
    )
    low, high = found.confidence_interval
    return Interval(middle, float(low), float(high))


def ratio_interval(
    samples: NDArray[np.float64], base: NDArray[np.float64], confidence: float, seed: int
) -> Interval:
    """Returns the median of samples / base, round by round, with its interval.

    Args:
        samples: seconds, float64 (rounds,).
        base: seconds of the same rounds, float64 (rounds,).
        confidence: of the interval, 0 to 1.
        seed: of the resampling.
    """
    return median_interval(samples / base, confidence, seed)


def noise_floor(again: Interval) -> float:
    """Returns how far from 1 a ratio of two equal models may lie, as one of them showed.

    Args:
        again: ratio of a model's second session to its first.
    """
    return max(abs(again.low - 1.0), abs(again.high - 1.0))


def judge(ratio: Interval, floor: float) -> Verdict:
    """Returns what a ratio shows: something only if its whole interval is beyond the noise.

    Args:
        ratio: latency of a model over that of its base.
        floor: see `noise_floor`.
    """
    if ratio.high < 1.0 - floor:
        return "faster"
    return "slower" if ratio.low > 1.0 + floor else "inside the noise"
