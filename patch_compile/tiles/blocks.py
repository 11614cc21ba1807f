"""How the weights around an inner axis are cut at one index.

In `Y = f(X G, X U) D`, f elementwise, feature i of the inner axis is a row of G and of U and a
column of D. A cut of the axis therefore cuts all three, and f with them. In an attention f
works on heads instead: a head of keys and values, and the queries that share it, are some rows
of q, k and v and some columns of o. So the axis is made of units that are never parted, one
feature each in an MLP, one group of heads in an attention.

N: out features. K: in features. I: features of the inner axis, the N of G and U, the K of D.
U: units of the inner axis.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

import numpy as np
from numpy.typing import NDArray

from patch_compile.tiles.cost import Cost
from patch_compile.tiles.plan import Piece, Span, by_first, joined
from patch_compile.tiles.planner import over_all_columns, spans_of
from patch_compile.tiles.weight_mask import WeightMask

__all__ = [
    "Block",
    "Cut",
    "Heads",
    "Structure",
    "branch_pieces",
    "row_pieces",
    "shared_cut",
    "sunk_pieces",
]

Pieces = tuple[Piece, ...]


@dataclass(frozen=True)
class Heads:
    """The inner axis of an attention.

    Attributes:
        groups: heads of keys and values: the units.
        features: of one of them, in the K of the weight that sums.
        stacks: of each of a block's `rows`, how often all units lie along its N, one after
            another: 3 where q, k and v are one weight.
        kernels: launches that a second branch costs beyond its products.
    """

    groups: int
    features: int
    stacks: tuple[int, ...]
    kernels: int


@dataclass(frozen=True)
class Block:
    """Products whose outputs meet, and the product that sums over what they make.

    Attributes:
        rows: initializers of the products that make the inner axis.
        columns: initializer of the product that sums over it.
        one_input: all of `rows` multiply one X.
        refusal: why the graph does not let them be cut together, or None.
        attends: an attention lies between, not elementwise operations alone.
        heads: how an attention is cut; None for an MLP, and where one is refused.
    """

    rows: tuple[str, ...]
    columns: str
    one_input: bool
    refusal: str | None = None
    attends: bool = False
    heads: Heads | None = None

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
    """The inner axis in two: units that are dense in some weight, and those 2:4 in all.

    Attributes:
        dense: spans of units.
        sparse: spans of units.
        units: U.
    """

    dense: tuple[Span, ...]
    sparse: tuple[Span, ...]
    units: int

    def along(self, spans: Sequence[Span], size: int, stacks: int = 1) -> tuple[Span, ...]:
        """Features of some units on an axis of `size` that holds all units `stacks` times."""
        inner = size // (stacks * self.units)
        return joined(
            (inner * (first + start), inner * (first + stop))
            for first in range(0, stacks * self.units, self.units)
            for start, stop in spans
        )


def shared_cut(
    rows: Sequence[WeightMask], columns: WeightMask | None, heads: Heads | None = None
) -> Cut | None:
    """Cuts the inner axis so that one side is 2:4 in every weight; None if one side is empty.

    The cut lies between groups of 4, so that it parts no group of the weight that sums.

    Args:
        rows: masks of the weights that make the axis, (I, K) for an MLP.
        columns: mask (N, I) of the weight that sums over it, if its tiles count.
        heads: of an attention; its groups are the units.
    """
    units = rows[0].shape[0] if heads is None else heads.groups
    dense: NDArray[np.bool_] = np.zeros(units, np.bool_)
    for place, mask in enumerate(rows):
        held = np.repeat(mask.dense.any(axis=1), mask.grid.heights)
        dense[_by_unit(held, units, 1 if heads is None else heads.stacks[place])] = True
    if columns is not None:
        held = np.repeat(columns.dense.any(axis=0), columns.grid.widths)
        dense[_by_unit(held, units, 1)] = True
    step = 4 // gcd(4, 1 if heads is None else heads.features)
    several = np.any(dense.reshape(-1, step), axis=1)
    if several.all() or not several.any():
        return None
    edges = range(0, units + 1, step)
    return Cut(spans_of(edges, several), spans_of(edges, np.logical_not(several)), units)


def _by_unit(held: NDArray[np.bool_], units: int, stacks: int) -> NDArray[np.bool_]:
    """Which units have a feature that is held, wherever it lies: bool (U,)."""
    features = held.reshape(stacks, units, -1)
    found: NDArray[np.bool_] = np.any(np.any(features, axis=2), axis=0)
    return found


def row_pieces(cut: Cut, shape: tuple[int, int], stacks: int = 1) -> Pieces:
    """The dense and the 2:4 piece of a weight of `shape` (N, K) that makes the axis."""
    n, k = shape
    whole = ((0, k),)
    return (
        Piece("dense", cut.along(cut.dense, n, stacks), whole),
        Piece("sparse24", cut.along(cut.sparse, n, stacks), whole),
    )


def branch_pieces(cut: Cut, shape: tuple[int, int]) -> Pieces:
    """The dense and the 2:4 piece of the weight of `shape` (N, I) that sums over the axis."""
    n, k = shape
    whole = ((0, n),)
    return (
        Piece("dense", whole, cut.along(cut.dense, k)),
        Piece("sparse24", whole, cut.along(cut.sparse, k)),
    )


def sunk_pieces(cut: Cut, mask: WeightMask, cost: Cost) -> Pieces:
    """The pieces of a weight (N, I) whose columns take the order of the joined halves."""
    k = mask.shape[1]
    halves = row_pieces(cut, (k, k))
    order = joined(span for index in by_first(halves) for span in halves[index].rows)
    return tuple(
        Piece(piece.role, piece.rows, order) for piece in over_all_columns(mask, cost)
    )
