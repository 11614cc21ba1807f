"""Putting an engine into the report beside a compiled model."""

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patch_compile.compiler import COMPILED
from patch_compile.expected import read_beside
from patch_compile.io.atomic import write_text
from patch_compile.joining import Joined

if TYPE_CHECKING:
    from patch_compile.runtimes.evidence import Evidence

__all__ = ["note_engine"]


def note_engine(
    model: Path, engine: str, sm: tuple[int, ...], evidence: "Evidence", joined: Joined
) -> bool:
    """Puts an engine into report.json, in place of its namesake.

    Args:
        model: the .onnx file.
        engine: its name in the report.
        sm: the architectures it is for.
        evidence: what is known of it.
        joined: what it means for the weights.

    Returns:
        Whether there is a report: only compiled models have one.

    Raises:
        ModelError: if the report is damaged.
    """
    path = model.parent / "report.json"
    if model.name != COMPILED or not path.exists():
        return False
    entry = {
        "engine": engine,
        "backend": evidence.backend,
        "version": evidence.version,
        "sm": list(sm),
        "gpu": evidence.device or "unknown",
        "requested": evidence.requested,
        **joined.to_json(),
    }
    write_text(path, read_beside(model, path.name, partial(_with_engine, entry)))
    return True


def _with_engine(entry: dict[str, Any], text: str) -> str:
    report = json.loads(text)
    entry["eligible"] = report["totals"]["eligible"]
    others = [e for e in report["engines"] if e["engine"] != entry["engine"]]
    report["engines"] = sorted([*others, entry], key=lambda engine: str(engine["engine"]))
    return json.dumps(report, indent=1) + "\n"
