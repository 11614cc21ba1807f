"""Predicted time: before and after, by number of tokens, by kind of weight, by what it is for.

A report may carry, for each weight, `predicted`: one entry a number of tokens, each with
`tokens`, `before_us`, `after_us`, and of the time after it `parts`, microseconds by use; and
for the whole, `target`: its `name`, and the `basis` that predictions rest on. What is absent
is unknown.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from patch_compile.page.work import grouped

__all__ = ["Time", "Times", "gains", "predicted"]

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Time:
    """Predicted microseconds of some weights' products.

    Attributes:
        label: what the weights have in common.
        before: dense, before the rewrite.
        after: with everything that the rewrite adds.
    """

    label: str
    before: float
    after: float

    @property
    def gain(self) -> float:
        """Speed-up: time before over time after."""
        return self.before / self.after if self.after > 0 else 1.0


@dataclass(frozen=True)
class Times:
    """Predictions for one number of tokens.

    Attributes:
        tokens: in one pass.
        total: over all weights.
        kinds: by kind of weight, the dearest first.
        parts: of the time after, by use, the dearest first; empty if the report has none.
        absent: weights without a prediction; the sums are without them.
    """

    tokens: int
    total: Time
    kinds: tuple[Time, ...]
    parts: tuple[tuple[str, float], ...]
    absent: int


def predicted(weights: Sequence[Facts]) -> list[Times]:
    """Sums the predictions of a report's weights; none where it has none."""
    counts = sorted({entry["tokens"] for weight in weights for entry in _entries(weight)})
    return [_times(weights, tokens) for tokens in counts]


def gains(weight: Facts, times: Sequence[Times]) -> list[float | None]:
    """Returns a weight's speed-up for each number of tokens; None where it is unknown."""
    found = [_at(weight, entry.tokens) for entry in times]
    return [None if entry is None else _sum("", [entry]).gain for entry in found]


def _entries(weight: Facts) -> Sequence[Facts]:
    found: Sequence[Facts] = weight.get("predicted") or ()
    return found


def _at(weight: Facts, tokens: int) -> Facts | None:
    return next((entry for entry in _entries(weight) if entry["tokens"] == tokens), None)


def _times(weights: Sequence[Facts], tokens: int) -> Times:
    found = [entry for weight in weights if (entry := _at(weight, tokens)) is not None]
    told = [weight for weight in weights if _at(weight, tokens) is not None]
    kinds = [
        _sum(kind, [entry for w in group if (entry := _at(w, tokens)) is not None])
        for kind, group in grouped(told).items()
    ]
    return Times(
        tokens,
        _sum("all", found),
        tuple(sorted(kinds, key=lambda time: (-time.before, time.label))),
        _parts(found),
        len(weights) - len(told),
    )


def _sum(label: str, entries: Sequence[Facts]) -> Time:
    before = sum(float(entry["before_us"]) for entry in entries)
    return Time(label, before, sum(float(entry["after_us"]) for entry in entries))


def _parts(entries: Sequence[Facts]) -> tuple[tuple[str, float], ...]:
    sums: dict[str, float] = {}
    for entry in entries:
        for part, time in entry.get("parts", {}).items():
            sums[part] = sums.get(part, 0.0) + float(time)
    return tuple(sorted(sums.items(), key=lambda item: (-item[1], item[0])))
