"""Measured time: what `bench` left in a report, beside what was predicted for it.

A report may carry `measured`: an entry a runtime, device, batch and number of tokens, as
`BenchResult.to_report` gives them. What is absent was not measured, and is called that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from patch_compile.page.formats import known, percent, ratio
from patch_compile.page.times import Times

__all__ = [
    "NOT_MEASURED",
    "Comparison",
    "comparisons",
    "measured_figure",
    "measured_gains",
    "measurement",
]

Facts = Mapping[str, Any]

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Comparison:
    """What is known of the time at one number of tokens, on one machine.

    Attributes:
        tokens: of a run, all its sequences together.
        predicted: speed-ups with their targets, `1.25x (a100-bf16)`; empty if there are none.
        where: runtime and device of the measurement; `not measured` without one.
        dense: seconds of a run of the dense model; None without a measurement.
        compiled: of the compiled one.
        gain: measured speed-up with its interval, `1.25x (1.20x to 1.31x)`.
        verdict: against the noise, with the noise; empty without a measurement.
    """

    tokens: int
    predicted: str
    where: str = NOT_MEASURED
    dense: float | None = None
    compiled: float | None = None
    gain: str = NOT_MEASURED
    verdict: str = ""


def comparisons(report: Facts, times: Sequence[Times], target: str) -> list[Comparison]:
    """Lists predictions and measurements by tokens; empty if there is neither.

    Args:
        report: the data of a report.json.
        times: its predictions.
        target: what they are for.
    """
    made = _entries(report)
    told = {time.tokens: f"{ratio(time.total.gain)} ({target})" for time in times}
    found = []
    for tokens in sorted({*told, *map(_in_all, made)}):
        predicted = told.get(tokens, "")
        rows = [entry for entry in made if _in_all(entry) == tokens]
        found += [_compared(tokens, predicted, row) for row in rows]
        if not rows:
            found.append(Comparison(tokens, predicted))
    return found


def _entries(report: Facts) -> Sequence[Facts]:
    entries: Sequence[Facts] = report.get("measured") or ()
    return entries


def _in_all(entry: Facts) -> int:
    """The tokens of a run: products are predicted by these."""
    return int(entry["batch"]) * int(entry["tokens"])


def _compared(tokens: int, predicted: str, row: Facts) -> Comparison:
    batch = "" if row["batch"] == 1 else f", {row['batch']} sequences of {row['tokens']}"
    cast = ", which was cast" if row.get("cast") else ""
    return Comparison(
        tokens,
        predicted,
        f"{row['runtime']} {row['version']}, {row['device']}{batch}{cast}",
        row["dense_seconds"],
        row["compiled_seconds"],
        _gain(row),
        _judged(row),
    )


def _gain(row: Facts) -> str:
    """Returns a measured speed-up with its interval: `1.25x (1.20x to 1.31x)`."""
    low, middle, high = (1 / row["ratio"][end] for end in ("high", "median", "low"))
    return f"{ratio(middle)} ({ratio(low)} to {ratio(high)})"


def _judged(row: Facts) -> str:
    if not known(row["noise"]):
        return "the noise is unknown"
    return f"{row['verdict']}, noise {percent(row['noise'])}"


def measured_gains(report: Facts) -> list[str]:
    """Returns what was measured, an entry a number of tokens and machine, in words."""
    return [
        f"{_gain(row)} at {int(row['tokens']):,} tokens on {row['device']}, {_judged(row)}"
        for row in _entries(report)
    ]


def measured_figure(report: Facts) -> tuple[str, str]:
    """Returns the measured speed-ups, and what to read them against."""
    rows = _entries(report)
    if not rows:
        return NOT_MEASURED, "by patch-compile bench"
    gains = " ".join(ratio(1 / row["ratio"]["median"]) for row in rows)
    counts = " and ".join(dict.fromkeys(f"{int(row['tokens']):,}" for row in rows))
    return gains, f"at {counts} tokens"


def measurement(report: Facts) -> tuple[str, str]:
    """Returns the last stage's value and how it is known."""
    rows = _entries(report)
    if not rows:
        return NOT_MEASURED, "patch-compile bench adds its times to this page"
    devices = sorted({f"{row['runtime']} on {row['device']}" for row in rows})
    tokens = ", ".join(f"{count:,}" for count in sorted({int(row["tokens"]) for row in rows}))
    return f"at {tokens} tokens", f"by {'; '.join(devices)}: dense and compiled in turns"
