"""How the weights around an inner axis are cut at one index.

In `Y = f(X G, X U) D`, f elementwise, feature i of the inner axis is a row of G and of U and a
column of D. A cut of the axis therefore cuts all three, and f with them.

N: out features. K: in features. I: features of the inner axis, the N of G and U, the K of D.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from patch_compile.tiles.cost import Cost
from patch_compile.tiles.plan import Piece, Span, by_first, joined
from patch_compile.tiles.planner import over_all_columns, spans_of
from patch_compile.tiles.weight_mask import WeightMask

__all__ = [
    "Block",
    "Cut",
    "Structure",
    "branch_pieces",
    "row_pieces",
    "shared_cut",
    "sunk_pieces",
]

Pieces = tuple[Piece, ...]


@dataclass(frozen=True)
class Block:
    """Products whose outputs meet in elementwise operations, and the product after those.

    Attributes:
        rows: initializers of the products that make the inner axis.
        columns: initializer of the product that sums over it.
        one_input: all of `rows` multiply one X.
        refusal: why the graph does not let them be cut together, or None.
    """

    rows: tuple[str, ...]
    columns: str
    one_input: bool
    refusal: str | None = None

    @property
    def weights(self) -> tuple[str, ...]:
        """All members, `columns` last."""
        return (*self.rows, self.columns)


@dataclass(frozen=True)
class Structure:
    """What a graph says about its weights.

    Attributes:
        blocks: in graph order.
        siblings: initializers that multiply one X, each in one product alone.
    """

    blocks: tuple[Block, ...] = ()
    siblings: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Cut:
    """The inner axis in two: spans that are dense in some weight, and those 2:4 in all."""

    dense: tuple[Span, ...]
    sparse: tuple[Span, ...]


def shared_cut(rows: Sequence[WeightMask], columns: WeightMask | None) -> Cut | None:
    """Cuts the inner axis so that one side is 2:4 in every weight; None if one side is empty.

    The cut lies between groups of 4, so that it parts no group of the weight that sums.

    Args:
        rows: masks (I, K) of the weights that make the axis.
        columns: mask (N, I) of the weight that sums over it, if its tiles count.
    """
    features = np.zeros(rows[0].shape[0], np.bool_)
    for mask in rows:
        features |= np.repeat(mask.dense.any(axis=1), mask.grid.heights)
    if columns is not None:
        features |= np.repeat(columns.dense.any(axis=0), columns.grid.widths)
    groups = np.any(features.reshape(-1, 4), axis=1)
    if groups.all() or not groups.any():
        return None
    edges = range(0, features.size + 1, 4)
    return Cut(spans_of(edges, groups), spans_of(edges, np.logical_not(groups)))


def row_pieces(cut: Cut, k: int) -> Pieces:
    """The dense and the 2:4 piece of a weight (I, K) that makes the axis."""
    whole = ((0, k),)
    return Piece("dense", cut.dense, whole), Piece("sparse24", cut.sparse, whole)


def branch_pieces(cut: Cut, n: int) -> Pieces:
    """The dense and the 2:4 piece of the weight (N, I) that sums over the axis."""
    whole = ((0, n),)
    return Piece("dense", whole, cut.dense), Piece("sparse24", whole, cut.sparse)


def sunk_pieces(cut: Cut, mask: WeightMask, cost: Cost) -> Pieces:
    """The pieces of a weight (N, I) whose columns take the order of the joined halves."""
    halves = row_pieces(cut, mask.shape[1])
    order = joined(span for index in by_first(halves) for span in halves[index].rows)
    return tuple(
        Piece(piece.role, piece.rows, order) for piece in over_all_columns(mask, cost)
    )
