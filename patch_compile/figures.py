"""Pictures as files: what kinds there are, and how they reach the disk."""

import io
from pathlib import Path
from typing import Any

from patch_compile._require import require
from patch_compile.errors import RecipeError
from patch_compile.io.atomic import write_bytes

__all__ = ["check_plot", "new_figure", "save_figure"]

_KINDS = (".pdf", ".png", ".svg")
# An .svg is the same at every drawing: no date, and names that are not drawn at random.
_STEADY = {"svg.hashsalt": "patch-compile"}


def check_plot(path: Path) -> None:
    """Refuses a picture that could not be drawn, before anything is computed.

    Raises:
        RecipeError: if the file is of a kind that we do not draw.
        RuntimeUnavailable: if matplotlib is missing.
    """
    if path.suffix not in _KINDS:
        raise RecipeError(f"plot '{path}' | is of no kind we draw; choose {', '.join(_KINDS)}")
    require("matplotlib", "plot")


def new_figure(width: float, height: float) -> Any:
    """Returns an empty figure of so many inches."""
    figures = require("matplotlib.figure", "plot")
    return figures.Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Any, path: Path) -> None:
    """Writes a figure, whole or not at all, in the kind that its suffix names."""
    check_plot(path)
    style = require("matplotlib", "plot")
    kind = path.suffix[1:]
    picture = io.BytesIO()
    with style.rc_context(_STEADY):
        figure.savefig(
            picture, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None
        )
    write_bytes(path, picture.getvalue())
