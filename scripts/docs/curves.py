"""Perplexity over sparsity, a line a run of benchmarks/quality.py, as HTML with an SVG."""

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

__all__ = ["perplexity_curves"]

# A phone shows it unshrunk, or nearly so.
_WIDE, _HIGH = 370, 300
# What stands around the plot: numbers at the left and below.
_LEFT, _RIGHT, _TOP, _BELOW = 34, 16, 10, 40
# No line runs through the word above the lowest one.
_CLEAR = 1.15
_ROUND = (20, 30, 40, 60, 80, 100, 150, 200, 300, 400)

Point = tuple[float, float]


def perplexity_curves(rows: Mapping[str, Mapping[str, Any]], runs: Sequence[str]) -> str:
    """Draws runs over the sparsities that were cut from them; perplexity is logarithmic.

    Args:
        rows: of quality.json, `dense` among them.
        runs: names of runs of several sparsities, in the order of their colours.

    Raises:
        KeyError: if nothing is known of a run.
    """
    curves = {run: _points(rows, run) for run in runs}
    found = [point for points in curves.values() for point in points]
    scale = _Scale(
        [x for x, _ in found], [rows["dense"]["perplexity"], *(y for _, y in found)]
    )
    parts = [*_grid(scale, sorted({x for x, _ in found})), *_floor(scale)]
    for index, points in enumerate(curves.values()):
        parts += _curve([scale.place(point) for point in points], index)
    names = "".join(_name(index, run) for index, run in enumerate(curves))
    return (
        f'<figure class="pc-curves"><svg viewBox="0 0 {_WIDE} {_HIGH}" width="{_WIDE}" '
        f'role="img" aria-label="perplexity over sparsity">{"".join(parts)}</svg>'
        f"<figcaption>{names}</figcaption></figure>"
    )


def _name(index: int, run: str) -> str:
    return f'<span><i class="pc-hue{index}"></i>{escape(run)}</span>'


def _points(rows: Mapping[str, Mapping[str, Any]], run: str) -> list[Point]:
    mine = (row for row in rows.values() if row.get("run") == run)
    points = [(row["asked"], row["perplexity"]) for row in mine]
    if not points:
        raise KeyError(run)
    return sorted(points)


class _Scale:
    """From sparsities and perplexities to places."""

    def __init__(self, sparsities: Sequence[float], perplexities: Sequence[float]) -> None:
        self.first, self.last = min(sparsities), max(sparsities)
        self.least, self.most = min(perplexities), max(perplexities)

    def place(self, point: Point) -> Point:
        across = (point[0] - self.first) / (self.last - self.first)
        up = math.log(point[1] / self.least) / math.log(self.most / self.least)
        wide, high = _WIDE - _LEFT - _RIGHT, _HIGH - _TOP - _BELOW
        return _LEFT + across * wide, _TOP + (1 - up) * high


def _grid(scale: _Scale, sparsities: Sequence[float]) -> Iterator[str]:
    for number in _ROUND:
        if _CLEAR * scale.least < number <= scale.most:
            y = scale.place((scale.first, number))[1]
            yield _rule(y, "pc-grid") + _text(_LEFT - 8, y + 4, f"{number}", "end")
    bottom = _HIGH - _BELOW
    for sparsity in sparsities:
        x = scale.place((sparsity, scale.least))[0]
        yield _text(x, bottom + 17, f"{100 * sparsity:g} %", "middle")
    yield _text((_LEFT + _WIDE - _RIGHT) / 2, bottom + 34, "sparsity", "middle")


def _floor(scale: _Scale) -> Iterator[str]:
    y = scale.place((scale.first, scale.least))[1]
    yield _rule(y, "pc-floor")
    yield _text(_WIDE - _RIGHT, y - 5, f"dense {scale.least:.1f}", "end")


def _rule(y: float, kind: str) -> str:
    return f'<path class="{kind}" d="M{_LEFT} {y:.1f}H{_WIDE - _RIGHT}"/>'


def _text(x: float, y: float, word: str, anchor: str) -> str:
    return (
        f'<text class="pc-tick" style="text-anchor:{anchor}" x="{x:.1f}" y="{y:.1f}">'
        f"{escape(word)}</text>"
    )


def _curve(points: Sequence[Point], index: int) -> Iterator[str]:
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    yield f'<path class="pc-curve pc-hue{index}" d="M{path}"/>'
    for x, y in points:
        yield f'<circle class="pc-dot pc-hue{index}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>'
