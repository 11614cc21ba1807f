"""Where the work goes: multiply-adds by kind of weight and by layer, and what stays dense."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from patch_compile.page.names import alike, place, together

__all__ = ["Cell", "Chart", "Reason", "Work", "by_kind", "chart", "grouped", "reasons", "work"]

# More rows than this are no picture: a model without layers has one kind a weight.
_MOST_KINDS = 24
_WIDEST, _NARROWEST, _WIDTH = 16, 3, 1088

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Work:
    """Multiply-adds a token of some weights.

    Attributes:
        label: what the weights have in common.
        weights: how many.
        before: multiply-adds before the rewrite.
        dense: after it, in dense pieces.
        sparse: after it, in 2:4 pieces, each counting half.
    """

    label: str
    weights: int
    before: float
    dense: float
    sparse: float

    @property
    def kept(self) -> float:
        """Share of the multiply-adds that is left."""
        return (self.dense + self.sparse) / max(1.0, self.before)


def work(label: str, weights: Sequence[Facts]) -> Work:
    """Sums the multiply-adds of weights of report.json."""
    kept = sum(float(weight["macs_kept"]) for weight in weights)
    pieces = [piece for weight in weights for piece in weight["pieces"]]
    sparse = sum(0.5 * _size(piece) for piece in pieces if piece["role"] == "sparse24")
    before = float(sum(weight["macs"] for weight in weights))
    return Work(label, len(weights), before, kept - sparse, sparse)


def _size(piece: Facts) -> float:
    n, k = piece["shape"]
    return float(n * k)


def by_kind(weights: Sequence[Facts]) -> list[Work]:
    """Sums by kind of weight, the largest first; none where each weight is a kind."""
    kinds = grouped(weights)
    if len(kinds) == len(weights) > _MOST_KINDS:
        return []
    found = [work(kind, group) for kind, group in kinds.items()]
    return sorted(found, key=lambda entry: (-entry.before, entry.label))


def grouped(weights: Iterable[Facts]) -> dict[str, list[Facts]]:
    """Sorts weights by kind, in graph order."""
    groups: dict[str, list[Facts]] = {}
    for weight in weights:
        groups.setdefault(place(weight).kind, []).append(weight)
    return groups


@dataclass(frozen=True)
class Cell:
    """One square of the chart: a layer's weights of a kind.

    Attributes:
        x: column.
        y: row.
        first: index of the first of its weights in the report.
        layer: its number.
        work: of its weights.
    """

    x: int
    y: int
    first: int
    layer: int
    work: Work


@dataclass(frozen=True)
class Chart:
    """Layers across, kinds down.

    Attributes:
        kinds: row labels, in graph order.
        layers: column labels.
        pitch: pixels from one square to the next.
        cells: those that hold weights.
    """

    kinds: tuple[str, ...]
    layers: tuple[int, ...]
    pitch: int
    cells: tuple[Cell, ...]


def chart(weights: Sequence[Facts]) -> Chart | None:
    """Arranges weights by layer and kind; None where a model has no layers to compare."""
    placed = [(place(weight), index) for index, weight in enumerate(weights)]
    inside = [(spot.layer, spot.kind, i) for spot, i in placed if spot.layer is not None]
    layers = tuple(sorted({layer for layer, _, _ in inside}))
    kinds = tuple(dict.fromkeys(kind for _, kind, _ in inside))
    if len(layers) < 2 or len(kinds) > _MOST_KINDS:
        return None
    pitch = max(_NARROWEST, min(_WIDEST, _WIDTH // len(layers)))
    columns = {layer: x for x, layer in enumerate(layers)}
    rows = {kind: y for y, kind in enumerate(kinds)}
    cells = []
    for (layer, kind), found in groupby(sorted(inside), key=lambda entry: entry[:2]):
        members = [index for _, _, index in found]
        total = work(kind, [weights[index] for index in members])
        cells.append(Cell(columns[layer], rows[kind], members[0], layer, total))
    return Chart(kinds, layers, pitch, tuple(cells))


@dataclass(frozen=True)
class Reason:
    """Why weights have no 2:4 piece.

    Attributes:
        text: the reason, percentages that differ as least and most.
        weights: how many share it.
        share: of all multiply-adds, 0 to 1.
    """

    text: str
    weights: int
    share: float


def reasons(weights: Sequence[Facts]) -> list[Reason]:
    """Counts why masked weights stayed dense, the heaviest reason first."""
    groups: dict[str, list[Facts]] = {}
    for weight in weights:
        if not weight["eligible"]:
            groups.setdefault(alike(weight["reason"]), []).append(weight)
    area = max(1, sum(weight["macs"] for weight in weights))
    found = [
        Reason(
            together([weight["reason"] for weight in group]),
            len(group),
            sum(weight["macs"] for weight in group) / area,
        )
        for group in groups.values()
    ]
    return sorted(found, key=lambda entry: (-entry.share, entry.text))
