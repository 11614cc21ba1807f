"""Putting engines and measured times into the report beside a compiled model."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patch_compile.joining import Joined
from patch_compile.papers import add_to_report, with_versions

if TYPE_CHECKING:
    from patch_compile.runtimes.evidence import Evidence

__all__ = ["note_engine", "note_measured"]

# What tells one measurement from another.
_KEY = ("runtime", "device", "batch", "tokens")


def note_engine(
    model: Path,
    engine: str,
    sm: tuple[int, ...],
    evidence: "Evidence",
    joined: Joined,
    recipe: dict[str, Any] | None = None,
) -> bool:
    """Puts an engine into report.json, in place of its namesake.

    Args:
        model: the .onnx file.
        engine: its name in the report.
        sm: the architectures it is for.
        evidence: what is known of it.
        joined: what it means for the weights.
        recipe: how it was built, where that is known.

    Returns:
        Whether there is a report: only compiled models have one.

    Raises:
        ModelError: if the report is damaged.
    """
    entry = {
        "engine": engine,
        "backend": evidence.backend,
        "version": evidence.version,
        "sm": list(sm),
        "gpu": evidence.device or "unknown",
        "requested": evidence.requested,
        "eligible": sum(weight.eligible for weight in joined.weights),
        **joined.to_json(),
    }
    if recipe is not None:
        entry["recipe"] = recipe
    return add_to_report(model, partial(_with_engine, entry))


def _with_engine(entry: dict[str, Any], report: dict[str, Any]) -> dict[str, Any]:
    others = [e for e in report["engines"] if e["engine"] != entry["engine"]]
    engines = sorted([*others, entry], key=lambda engine: str(engine["engine"]))
    return {**report, "engines": engines}


def note_measured(
    model: Path, entries: Sequence[dict[str, Any]], versions: Mapping[str, str]
) -> bool:
    """Puts measured times into report.json, in place of older ones of the same kind.

    Args:
        model: the compiled .onnx file.
        entries: as `BenchResult.to_report` gives them.
        versions: releases of what ran the models, by package.

    Returns:
        Whether there is a report: only compiled models have one.

    Raises:
        ModelError: if the report is damaged.
    """

    def change(report: dict[str, Any]) -> dict[str, Any]:
        new = {_key(entry) for entry in entries}
        kept = [entry for entry in report.get("measured", ()) if _key(entry) not in new]
        measured = sorted([*kept, *entries], key=_key)
        return {**with_versions(report, versions), "measured": measured}

    return add_to_report(model, change)


def _key(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(entry[name] for name in _KEY)
