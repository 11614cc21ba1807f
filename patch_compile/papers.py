"""The report beside a compiled model: later verbs add what they learn to it."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from patch_compile.compiler import COMPILED
from patch_compile.errors import ModelError
from patch_compile.expected import read_beside
from patch_compile.io.atomic import locked_folder, write_text
from patch_compile.page.render import page_of
from patch_compile.parsing import parse_json

__all__ = ["add_to_report", "draw_report", "report_text", "with_versions"]

_REPORT, _PAGE = "report.json", "report.html"


def add_to_report(model: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> bool:
    """Changes the report.json beside a compiled model, and draws its report.html again.

    Other models, and a compiled one without a report, are left as they are.

    Args:
        model: the .onnx file.
        change: from the report's data to what is to be written.

    Returns:
        Whether there is a report.

    Raises:
        ModelError: if the report is damaged.
    """
    folder = model.parent
    if model.name != COMPILED or not (folder / _REPORT).exists():
        return False
    with locked_folder(folder):
        report = read_beside(model, _REPORT, lambda text: change(parse_json(text)))
        text = report_text(report)
        page = page_of(text)
        write_text(folder / _REPORT, text)
        write_text(folder / _PAGE, page)
    return True


def report_text(report: Mapping[str, Any]) -> str:
    """Returns a report as JSON; NaN and infinities, which JSON has not, become null."""
    known = parse_json(json.dumps(report), constants=lambda _: None)
    return json.dumps(known, indent=1, allow_nan=False) + "\n"


def with_versions(report: dict[str, Any], versions: Mapping[str, str]) -> dict[str, Any]:
    """Returns a report that also names the releases of what was used on the model since."""
    return {**report, "versions": {**report["versions"], **versions}}


def draw_report(source: Path, output: Path | None = None) -> Path:
    """Draws a report.json, of this release or an older one, as a page.

    Args:
        source: a report.json, or the folder that holds one.
        output: the page; None puts it beside the report.

    Returns:
        The path of the page.

    Raises:
        ModelError: if there is no report, or it is damaged.
    """
    report = source / _REPORT if source.is_dir() else source
    page = output or report.with_suffix(".html")
    try:
        text = report.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise ModelError(
            f"report '{report}' | cannot be read: {error}; give the folder that patch-compile "
            "wrote, or its report.json"
        ) from error
    write_text(page, page_of(text))
    return page
