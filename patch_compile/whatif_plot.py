"""A picture of what-if: predicted speed-up by GPU and tokens."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from patch_compile.figures import check_plot, new_figure, save_figure
from patch_compile.whatif import WhatIf

__all__ = ["plot_what_if"]

# Inches of a row and of a column, and of what stands around them.
_ROW, _COLUMN = 0.24, 0.8
_MARGINS = (3.1, 1.2)
# Colours end here: a 2:4 kernel has twice the dense rate.
_MOST = 2.0
# Darker cells take white letters.
_DARK = 0.55


def plot_what_if(rows: Sequence[WhatIf], path: Path) -> None:
    """Draws a cell for every target and number of tokens; white is dense, green is faster.

    Args:
        rows: what `what_if` returned.
        path: a .png, .svg or .pdf to write.

    Raises:
        RecipeError: if the file is of another kind.
        RuntimeUnavailable: if matplotlib is missing.
    """
    check_plot(path)
    targets = list(dict.fromkeys(row.target for row in rows))
    counts = list(dict.fromkeys(row.tokens for row in rows))
    width = _MARGINS[0] + _COLUMN * len(counts)
    figure = new_figure(width, _MARGINS[1] + _ROW * len(targets))
    axes = figure.add_subplot()
    speedups = {(row.target, row.tokens): row.speedup for row in rows}
    cells = np.array([[speedups[name, tokens] for tokens in counts] for name in targets])
    _cells(axes, cells)
    marks = {row.target: "*" if row.estimate else "" for row in rows}
    axes.set_yticks(range(len(targets)), [name + marks[name] for name in targets])
    beyond = {row.tokens for row in rows if row.extrapolated}
    labels = [f"{tokens:,}{'†' if tokens in beyond else ''}" for tokens in counts]
    axes.set_xticks(range(len(counts)), labels)
    axes.set_xlabel("tokens a run")
    axes.tick_params(length=0)
    axes.set_title("Predicted speed-up of the linear layers", fontsize="medium")
    notes = ["* estimated from another GPU by datasheets"] if any(marks.values()) else []
    notes += ["† beyond the tokens measured"] if beyond else []
    if notes:
        figure.supxlabel("; ".join(notes), fontsize="x-small")
    save_figure(figure, path)


def _cells(axes: Any, cells: np.ndarray[Any, np.dtype[np.float64]]) -> None:
    # Greens from white: nothing is slower than dense, which a plan always may stay.
    axes.imshow(cells, cmap="Greens", vmin=1.0, vmax=_MOST, aspect="auto")
    for (row, column), gain in np.ndenumerate(cells):
        dark = (gain - 1) / (_MOST - 1) > _DARK
        axes.text(
            column,
            row,
            f"{gain:.2f}",
            ha="center",
            va="center",
            fontsize="small",
            color="white" if dark else "black",
        )
    axes.spines[:].set_visible(False)
