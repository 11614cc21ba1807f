"""Drawings as SVG: weights with their tiles, and graphs from top to bottom.

Colours are classes, so that the page's style sheet gives them for light and for dark.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from html import escape
from itertools import pairwise

__all__ = ["Box", "Graph", "Rectangle", "draw_graph", "draw_weight"]

_LAYER = 58
_GAP = 14
_WIDE, _NARROW = 104, 10
_HIGH = 36


@dataclass(frozen=True)
class Rectangle:
    """A block of a weight: rows and columns as half-open pairs, and its class."""

    rows: tuple[int, int]
    columns: tuple[int, int]
    kind: str


def draw_weight(shape: tuple[int, int], blocks: Sequence[Rectangle], title: str) -> str:
    """Draws a weight (N, K), rows downwards, as an SVG of one unit a feature."""
    n, k = shape
    parts = [f'<rect class="pc-ghost" x="0" y="0" width="{k}" height="{n}"/>']
    for block in blocks:
        (top, bottom), (left, right) = block.rows, block.columns
        parts.append(
            f'<rect class="pc-{block.kind}" x="{left}" y="{top}" '
            f'width="{right - left}" height="{bottom - top}"/>'
        )
    return (
        f'<svg class="pc-weight" viewBox="-1 -1 {k + 2} {n + 2}" width="{k + 2}" role="img" '
        f'aria-label="{escape(title)}">{"".join(parts)}</svg>'
    )


@dataclass(frozen=True)
class Box:
    """A node of a graph: what it says, its class, and the boxes it reads."""

    name: str
    lines: tuple[str, ...]
    kind: str
    reads: tuple[str, ...] = ()


@dataclass
class Graph:
    """Boxes in layers; a long edge bends through a narrow place in every layer it crosses.

    Attributes:
        boxes: by name; what is read comes before its readers.
        layers: names by layer.
        chains: of each edge the places it runs through.
    """

    boxes: Mapping[str, Box]
    layers: list[list[str]] = field(default_factory=list)
    chains: list[list[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        depths: dict[str, int] = {}
        for box in self.boxes.values():
            depths[box.name] = max((depths[read] + 1 for read in box.reads), default=0)
        self.layers = [[] for _ in range(max(depths.values()) + 1)]
        for name, depth in depths.items():
            self.layers[depth].append(name)
        for box in self.boxes.values():
            for read in box.reads:
                self._bend(read, box.name, depths)
        for _ in range(4):
            self._sort(down=True)
            self._sort(down=False)

    def _bend(self, start: str, end: str, depths: Mapping[str, int]) -> None:
        between = range(depths[start] + 1, depths[end])
        places = [f"{start}>{end}@{depth}" for depth in between]
        for depth, place in zip(between, places, strict=True):
            self.layers[depth].append(place)
        self.chains.append([start, *places, end])

    def _sort(self, *, down: bool) -> None:
        """Orders every layer by where its neighbours in the one before it stand."""
        near: dict[str, list[str]] = {}
        for upper, lower in (pair for chain in self.chains for pair in pairwise(chain)):
            near.setdefault(lower if down else upper, []).append(upper if down else lower)
        for before, layer in pairwise(self.layers if down else self.layers[::-1]):
            place = {name: index for index, name in enumerate(before)}
            layer.sort(key=partial(_middle, near, place))


def _middle(near: Mapping[str, list[str]], place: Mapping[str, int], name: str) -> float:
    found = [place[other] for other in near.get(name, ())]
    return sum(found) / len(found) if found else 0.0


def draw_graph(boxes: Sequence[Box], title: str) -> str:
    """Draws a graph as an SVG of fixed size, at most as wide as the page that holds it."""
    graph = Graph({box.name: box for box in boxes})
    places, width = _places(graph)
    height = _LAYER * (len(graph.layers) - 1) + _HIGH
    parts = [_edge([places[name] for name in chain]) for chain in graph.chains]
    parts += [_box(box, *places[box.name]) for box in boxes]
    return (
        f'<svg class="pc-graph" viewBox="-1 -1 {width + 2:.0f} {height + 2}" '
        f'width="{width + 2:.0f}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg>"
    )


def _places(graph: Graph) -> tuple[dict[str, tuple[float, float]], float]:
    widths = [
        sum(_width(graph, name) + _GAP for name in layer) - _GAP for layer in graph.layers
    ]
    whole = max(widths)
    places = {}
    for depth, (layer, width) in enumerate(zip(graph.layers, widths, strict=True)):
        left = (whole - width) / 2
        for name in layer:
            places[name] = (left + _width(graph, name) / 2, depth * _LAYER + _HIGH / 2)
            left += _width(graph, name) + _GAP
    return places, whole


def _width(graph: Graph, name: str) -> int:
    return _WIDE if name in graph.boxes else _NARROW


def _edge(points: Sequence[tuple[float, float]]) -> str:
    (x, y), *rest = points
    path = f"M{x:.1f} {y + _HIGH / 2:.1f}"
    at = y + _HIGH / 2
    for index, (next_x, next_y) in enumerate(rest):
        inside = index < len(rest) - 1
        top = next_y - _HIGH / 2
        middle = (at + top) / 2
        path += f"C{x:.1f} {middle:.1f} {next_x:.1f} {middle:.1f} {next_x:.1f} {top:.1f}"
        x, at = next_x, top
        if inside:
            at = next_y + _HIGH / 2
            path += f"L{x:.1f} {at:.1f}"
    return f'<path class="pc-edge" d="{path}"/>'


def _box(box: Box, x: float, y: float) -> str:
    width = _WIDE
    text = "".join(
        f'<text class="{"pc-small" if index else "pc-word"}" x="{x:.1f}" '
        f'y="{y + 4.5 + 14 * index - 7 * (len(box.lines) - 1):.1f}">{escape(line)}</text>'
        for index, line in enumerate(box.lines)
    )
    round_ = 18 if box.kind == "end" else 4
    return (
        f'<rect class="pc-{box.kind}" x="{x - width / 2:.1f}" y="{y - _HIGH / 2:.1f}" '
        f'width="{width}" height="{_HIGH}" rx="{round_}"/>{text}'
    )
