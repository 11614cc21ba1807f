"""What engines tell of the kernels they chose: `unknown` until a log or inspector speaks."""

from collections.abc import Mapping
from typing import Any

from patch_compile.page.formats import UNKNOWN, known

__all__ = ["chosen", "verdicts"]

Facts = Mapping[str, Any]


def chosen(report: Facts) -> str:
    """Returns how many pieces got a sparse kernel, by engine, as far as anyone knows."""
    told = [engine for engine in report["engines"] if known(engine["chosen"])]
    if known(report["totals"]["chosen"]):
        return f"{report['totals']['chosen']}"
    if not told:
        return UNKNOWN
    if len(told) == 1:
        return f"{told[0]['chosen']}"
    return ", ".join(f"{engine['chosen']} ({engine['engine']})" for engine in told)


def verdicts(report: Facts) -> list[list[str]]:
    """Returns for each weight what each engine tells of its 2:4 pieces, in words."""
    return [
        [line for engine in report["engines"] for line in _told(engine, weight)]
        for weight in report["weights"]
    ]


def _told(engine: Facts, weight: Facts) -> list[str]:
    name = "+".join(weight["masks"])
    entries = [entry for entry in engine.get("weights", ()) if entry["weight"] == name]
    return [
        f"{engine['engine']}: {piece['verdict']}"
        + (f", kernel {piece['tactic']}" if piece["tactic"] else "")
        + (f" ({piece['reason']})" if piece["reason"] else "")
        for entry in entries
        for piece in entry["pieces"]
    ]
