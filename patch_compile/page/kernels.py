"""What engines tell of the kernels they chose: `unknown` until a log or inspector speaks."""

from collections.abc import Mapping
from typing import Any

from patch_compile.page.formats import UNKNOWN, known

__all__ = ["chosen", "verdicts"]

Facts = Mapping[str, Any]


def chosen(report: Facts) -> str:
    """Returns how many 2:4 products got a sparse kernel, by engine, as far as anyone knows.

    Weights that are lowered together share products: there are fewer than pieces.
    """
    told = [engine for engine in report["engines"] if known(engine["chosen"])]
    counts = [f"{engine['chosen']} of {engine['eligible']} products" for engine in told]
    if len(told) < 2:
        return "".join(counts) or UNKNOWN
    names = (engine["engine"] for engine in told)
    return ", ".join(f"{count} ({name})" for count, name in zip(counts, names, strict=True))


def verdicts(report: Facts) -> list[list[str]]:
    """Returns for each weight what each engine tells of its 2:4 pieces, in words."""
    return [
        [line for engine in report["engines"] for line in _told(engine, weight)]
        for weight in report["weights"]
    ]


def _told(engine: Facts, weight: Facts) -> list[str]:
    masks = set(weight["masks"])
    # A merged product has the masks of several weights.
    entries = [
        entry
        for entry in engine.get("weights", ())
        if masks and masks <= set(entry["weight"].split("+"))
    ]
    return [
        f"{engine['engine']}: {piece['verdict']}"
        + (f", kernel {piece['tactic']}" if piece["tactic"] else "")
        + (f" ({piece['reason']})" if piece["reason"] else "")
        for entry in entries
        for piece in entry["pieces"]
    ]
