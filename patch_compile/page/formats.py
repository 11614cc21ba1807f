"""Numbers as people read them; what nobody knows is `unknown`, never 0."""

import json
from typing import Any

__all__ = [
    "UNKNOWN",
    "count",
    "known",
    "microseconds",
    "milliseconds",
    "percent",
    "perplexity",
    "plain",
    "ratio",
    "significant",
    "total",
]

UNKNOWN = "unknown"


def known(value: Any) -> bool:
    """Tells a number from its absence."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def percent(value: Any, digits: int = 1) -> str:
    """Returns a share of 0 to 1 as `25.0%`."""
    return f"{value:.{digits}%}" if known(value) else UNKNOWN


def count(value: Any) -> str:
    """Returns a whole number with its thousands apart."""
    return f"{value:,}" if known(value) else UNKNOWN


def total(value: Any) -> str:
    """Returns a large number in three digits: `135 M`."""
    if not known(value):
        return UNKNOWN
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:g}"


def microseconds(value: Any) -> str:
    """Returns microseconds, as milliseconds from a thousand on."""
    if not known(value):
        return UNKNOWN
    return f"{value / 1e3:,.2f} ms" if value >= 1e3 else f"{value:.1f} µs"


def milliseconds(value: Any) -> str:
    """Returns seconds as milliseconds in three digits, or whole ones."""
    if not known(value):
        return UNKNOWN
    # `g` would say 1e+03 from here on.
    return f"{value * 1e3:.3g} ms" if value < 0.9995 else f"{value * 1e3:,.0f} ms"


def ratio(value: Any) -> str:
    """Returns a speed-up as `1.25x`."""
    return f"{value:.2f}x" if known(value) else UNKNOWN


def significant(value: Any) -> str:
    """Returns a measurement in three digits; words, as `nan`, stay what they are."""
    if isinstance(value, str):
        return value
    return f"{value:.3g}" if known(value) else UNKNOWN


def perplexity(value: Any) -> str:
    """Returns a perplexity in four decimals; words, as `nan`, stay what they are."""
    if isinstance(value, str):
        return value
    return f"{value:.4f}" if known(value) else UNKNOWN


def plain(value: Any) -> str:
    """Returns a text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)
