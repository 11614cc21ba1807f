"""A picture of a benchmark: ratios to the dense model, intervals, and the noise as a band."""

from pathlib import Path
from typing import Any

from patch_compile.bench.results import BenchResult
from patch_compile.figures import check_plot, new_figure, save_figure

__all__ = ["plot_bench"]

# Models beside each other share a number of tokens; this is the room they take of it.
_SPREAD = 0.6


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
    figure = new_figure(7, 4)
    _draw(figure.add_subplot(), found)
    save_figure(figure, path)


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
