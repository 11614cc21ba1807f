"""A picture of a benchmark: ratios to the dense model, intervals, and the noise as a band."""

import io
from pathlib import Path
from typing import Any

from patch_compile._require import require
from patch_compile.bench.results import BenchResult
from patch_compile.errors import RecipeError
from patch_compile.io.atomic import write_bytes

__all__ = ["check_plot", "plot_bench"]

_KINDS = (".pdf", ".png", ".svg")
# Models beside each other share a number of tokens; this is the room they take of it.
_SPREAD = 0.6


def check_plot(path: Path) -> None:
    """Refuses a plot that could not be drawn, before anything is measured.

    Raises:
        RecipeError: if the file is of a kind that we do not draw.
        RuntimeUnavailable: if matplotlib is missing.
    """
    if path.suffix not in _KINDS:
        raise RecipeError(f"plot '{path}' | is of no kind we draw; choose {', '.join(_KINDS)}")
    require("matplotlib", "plot")


def plot_bench(found: BenchResult, path: Path) -> None:
    """Draws the ratio of every model's latency to the dense one, at every number of tokens.

    Args:
        found: what `bench_models` returned.
        path: a .png, .svg or .pdf to write.

    Raises:
        RecipeError: if the file is of another kind.
        RuntimeUnavailable: if matplotlib is missing.
    """
    check_plot(path)
    figures = require("matplotlib.figure", "plot")
    figure = figures.Figure(figsize=(7, 4), layout="constrained")
    _draw(figure.add_subplot(), found)
    picture = io.BytesIO()
    figure.savefig(picture, format=path.suffix[1:])
    write_bytes(path, picture.getvalue())


def _draw(axes: Any, found: BenchResult) -> None:
    names = [model.model for model in found.models[1:]]
    places = {tokens: place for place, tokens in enumerate(found.recipe.tokens)}
    for tokens, floor in found.noise.items():
        span = (places[tokens] - _SPREAD / 2, places[tokens] + _SPREAD / 2)
        axes.fill_between(span, max(0.0, 1 - floor), 1 + floor, color="0.88", zorder=0)
    for index, name in enumerate(names):
        rows = [row for row in found.rows if row.model == name]
        shift = _SPREAD * ((index + 0.5) / len(names) - 0.5)
        below = [row.ratio.median - row.ratio.low for row in rows]
        above = [row.ratio.high - row.ratio.median for row in rows]
        axes.errorbar(
            [places[row.tokens] + shift for row in rows],
            [row.ratio.median for row in rows],
            yerr=(below, above),
            fmt="o",
            capsize=3,
            label=name,
        )
    axes.axhline(1.0, color="0.5", linewidth=0.8)
    axes.set_xticks(list(places.values()), [str(tokens) for tokens in places])
    axes.set_xlabel("tokens")
    axes.set_ylabel("latency / dense")
    axes.set_title(
        f"{found.recipe.runtime} on {found.device}\n"
        f"{found.recipe.confidence:.0%} intervals; grey: noise",
        fontsize="medium",
    )
    # Beside the axes: no point is ever under it.
    axes.figure.legend(loc="outside right upper")
