"""What a form does at run time: products, moves and sums. What they cost a target says.

N: out features. K: in features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from patch_compile.tiles.cost import Cost
from patch_compile.tiles.plan import (
    GroupPlan,
    Piece,
    Plan,
    Role,
    Span,
    WeightPlan,
    by_first,
    joined,
    length,
)

__all__ = [
    "Operations",
    "in_order",
    "of_group",
    "of_pieces",
    "of_plan",
    "price",
    "products",
    "shared_order",
    "stacked",
]


@dataclass(frozen=True)
class Operations:
    """A bill that a `Cost` can price.

    Attributes:
        products: (N, K, role) of every MatMul.
        moved: features a token of every Concat, Gather, Slice and Split.
        added: features a token of every Add.
        again: kernels between products that run once more than in the dense graph, on parts
            of what they ran on: a chain of elementwise operations, or an attention over its
            heads, which engines fuse into one each. They cost a launch and move and compute
            nothing new.
    """

    products: tuple[tuple[int, int, Role], ...] = ()
    moved: tuple[int, ...] = ()
    added: tuple[int, ...] = ()
    again: int = 0

    def __add__(self, other: "Operations") -> "Operations":
        return Operations(
            self.products + other.products,
            self.moved + other.moved,
            self.added + other.added,
            self.again + other.again,
        )

    @property
    def launches(self) -> int:
        """Number of operations, but for those that run again and melt into one another."""
        return len(self.products) + len(self.moved) + len(self.added)

    def price(self, cost: Cost) -> float:
        """Sums what a target asks for each."""
        return (
            sum(
                cost.product(n, k, sparse24=role == "sparse24") for n, k, role in self.products
            )
            + sum(cost.moved(features) for features in self.moved)
            + sum(cost.added(features) for features in self.added)
            + self.again * cost.moved(0)
        )


def of_pieces(shape: tuple[int, int], pieces: Sequence[Piece]) -> Operations:
    """The bill of one weight of `shape` (N, K) that is lowered alone.

    Pieces over the same rows are added, those over other rows joined along N.
    """
    n, k = shape
    sums: dict[tuple[Span, ...], int] = {}
    for piece in pieces:
        sums[piece.rows] = sums.get(piece.rows, 0) + 1
    taken = [length(piece.columns) for piece in pieces if piece.columns != ((0, k),)]
    along = [n] if len(sums) > 1 else []
    if not in_order(pieces):
        along.append(n)
    added = [length(rows) for rows, count in sums.items() for _ in range(count - 1)]
    return Operations(_products(pieces), tuple(taken + along), tuple(added))


def price(shape: tuple[int, int], pieces: Sequence[Piece], cost: Cost) -> float:
    """What one weight of `shape` (N, K) costs in these pieces, lowered alone."""
    return of_pieces(shape, pieces).price(cost)


def in_order(pieces: Sequence[Piece]) -> bool:
    """Whether the pieces' rows, joined by their first, come in the order of N."""
    bands = list(dict.fromkeys(pieces[index].rows for index in by_first(pieces)))
    spans = [span for rows in bands for span in rows]
    return all(one[1] <= two[0] for one, two in pairwise(spans))


def of_group(group: GroupPlan, plans: Sequence[WeightPlan]) -> Operations:
    """The bill of a group; `plans` are those of its weights, `columns` last."""
    rows = plans[: len(group.rows)]
    if group.columns is None:
        return _merged(rows)
    products = _wide(rows) if group.merged else _apart(rows)
    last = plans[-1]
    if group.lowering == "branches":
        summed = Operations(_products(last.pieces), (), (last.shape[0],), group.again)
        return products + summed
    gathered = Operations(moved=(last.shape[1],), again=group.again)
    return products + gathered + _joined(last)


def of_plan(plan: Plan) -> Operations:
    """The bill of all weights of a plan, those of a group together."""
    alone = {weight.weight: weight for weight in plan.weights}
    bills = [of_group(group, [alone.pop(n) for n in group.weights]) for group in plan.groups]
    bills += [of_pieces(weight.shape, weight.pieces) for weight in alone.values()]
    return sum(bills, Operations())


def stacked(plans: Sequence[WeightPlan]) -> tuple[Piece, ...]:
    """One piece a role: those of several weights over all of K, stacked along N."""
    found: list[Piece] = []
    roles: tuple[Role, ...] = ("dense", "sparse24")
    for role in roles:
        spans: list[Span] = []
        start = 0
        for plan in plans:
            rows = [span for piece in plan.pieces if piece.role == role for span in piece.rows]
            spans += [(start + top, start + bottom) for top, bottom in rows]
            start += plan.shape[0]
        if spans:
            found.append(Piece(role, joined(spans), ((0, plans[0].shape[1]),)))
    return tuple(found)


def shared_order(plans: Sequence[WeightPlan]) -> bool:
    """Whether a merge restores the order of all its weights at once, before the split.

    With one weight at most that is cut, it is cheaper to join that one alone.
    """
    return sum(len(plan.pieces) > 1 for plan in plans) > 1


def products(pieces: Sequence[Piece]) -> Operations:
    """The bill of the pieces' products alone."""
    return Operations(_products(pieces))


def _products(pieces: Sequence[Piece]) -> tuple[tuple[int, int, Role], ...]:
    return tuple((*piece.shape, piece.role) for piece in pieces)


def _apart(plans: Sequence[WeightPlan]) -> Operations:
    return Operations(tuple(p for plan in plans for p in _products(plan.pieces)))


def _merged(plans: Sequence[WeightPlan]) -> Operations:
    if shared_order(plans):
        n = sum(plan.shape[0] for plan in plans)
        return of_pieces((n, plans[0].shape[1]), stacked(plans)) + Operations(moved=(n,))
    joins = tuple(move for plan in plans for move in _joined(plan).moved)
    return _wide(plans) + Operations(moved=joins)


def _wide(plans: Sequence[WeightPlan]) -> Operations:
    """One product a role, split where several weights share it."""
    wide = stacked(plans)
    shares = [sum(p.role == w.role for plan in plans for p in plan.pieces) for w in wide]
    moved = [piece.shape[0] for piece, share in zip(wide, shares, strict=True) if share > 1]
    return Operations(_products(wide), tuple(moved))


def _joined(plan: WeightPlan) -> Operations:
    """Products over all of K, joined along N."""
    moved = (plan.shape[0],) * ((len(plan.pieces) > 1) + (not in_order(plan.pieces)))
    return Operations(_products(plan.pieces), moved)
