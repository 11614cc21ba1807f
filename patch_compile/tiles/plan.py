"""Plans: how each masked MatMul is cut into pieces. Data only; `planner` decides.

N: out features. K: in features.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from patch_compile.parsing import parse_json
from patch_compile.recipe.compiling import BlockLowering, GroupLowering, Lowering

__all__ = [
    "LOWERINGS",
    "BlockLowering",
    "GroupLowering",
    "GroupPlan",
    "Lowering",
    "Part",
    "Piece",
    "Plan",
    "Role",
    "Span",
    "WeightPlan",
    "block_size",
    "by_first",
    "indices",
    "joined",
    "length",
]

Role = Literal["dense", "sparse24"]
Part = Literal["all", "first", "rest"]
Span = tuple[int, int]

LOWERINGS: tuple[Lowering, ...] = get_args(Lowering)


def indices(spans: Sequence[Span]) -> NDArray[np.int64]:
    """Lists every index that the spans hold, int64, in order."""
    return np.concatenate([np.arange(start, stop, dtype=np.int64) for start, stop in spans])


def block_size(spans: Sequence[Span], size: int) -> int:
    """The largest block of an axis of `size` that every span edge is a multiple of."""
    return math.gcd(size, *(edge for span in spans for edge in span))


def joined(spans: Iterable[Span]) -> tuple[Span, ...]:
    """Joins each span to the one before it where they touch; the order stays."""
    found: list[Span] = []
    for start, stop in spans:
        first = found.pop()[0] if found and found[-1][1] == start else start
        found.append((first, stop))
    return tuple(found)


def length(spans: Sequence[Span]) -> int:
    """Counts the indices that the spans hold."""
    return sum(stop - start for start, stop in spans)


@dataclass(frozen=True)
class Piece:
    """One MatMul after the rewrite: the block `rows` x `columns` of the (N, K) weight.

    Attributes:
        role: `dense`, or `sparse24` when every group of 4 along its own K keeps at most 2.
        rows: half-open spans of N, sorted and disjoint.
        columns: half-open spans of K, disjoint; sorted, but for a weight that takes the order
            of the products before it (`sink-order`).
        part: which kept weights of every group of 4 it holds: `all`, the `first` two, or the
            `rest`.
    """

    role: Role
    rows: tuple[Span, ...]
    columns: tuple[Span, ...]
    part: Part = "all"

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return length(self.rows), length(self.columns)

    @property
    def macs(self) -> int:
        """Multiply-adds for one token, zeros counted: rows x columns."""
        return self.shape[0] * self.shape[1]

    def to_json(self) -> dict[str, Any]:
        """Returns the piece as plain data."""
        return {
            "role": self.role,
            "rows": list(self.rows),
            "columns": list(self.columns),
            "part": self.part,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Piece":
        """Reads what `to_json` wrote."""
        rows, columns = _spans(data["rows"]), _spans(data["columns"])
        return cls(data["role"], rows, columns, data.get("part", "all"))


def by_first(pieces: Sequence[Piece]) -> tuple[int, ...]:
    """The numbers of the pieces in the order of their first rows.

    Joined in this order, pieces of contiguous rows need no Gather.
    """
    return tuple(sorted(range(len(pieces)), key=lambda index: pieces[index].rows[0]))


@dataclass(frozen=True)
class WeightPlan:
    """How one initializer is lowered.

    Attributes:
        weight: the initializer's name in the model.
        masks: names of the masks it takes, in order along N (several when fused).
        shape: (N, K).
        lowering: which rewrite applies; `branches` and `sink-order` are a group's.
        pieces: blocks that together hold the whole weight, disjoint but for `residual`, whose
            second piece holds what the first leaves.
        reason: why this lowering and not a sparser one, for people.
    """

    weight: str
    masks: tuple[str, ...]
    shape: tuple[int, int]
    lowering: Lowering
    pieces: tuple[Piece, ...]
    reason: str

    @property
    def macs(self) -> float:
        """Multiply-adds for one token; a 2:4 piece does half of its dense number."""
        return sum(p.macs * (0.5 if p.role == "sparse24" else 1.0) for p in self.pieces)

    def to_json(self) -> dict[str, Any]:
        """Returns the plan as plain data for plan.json."""
        return {
            "weight": self.weight,
            "masks": list(self.masks),
            "shape": list(self.shape),
            "lowering": self.lowering,
            "reason": self.reason,
            "pieces": [piece.to_json() for piece in self.pieces],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "WeightPlan":
        """Reads what `to_json` wrote."""
        pieces = tuple(Piece.from_json(entry) for entry in data["pieces"])
        n, k = data["shape"]
        return cls(
            data["weight"],
            tuple(data["masks"]),
            (n, k),
            data["lowering"],
            pieces,
            data["reason"],
        )


def _spans(data: Sequence[Sequence[int]]) -> tuple[Span, ...]:
    return tuple((start, stop) for start, stop in data)


@dataclass(frozen=True)
class GroupPlan:
    """Weights that are lowered together; their own plans hold their pieces.

    Attributes:
        lowering: `branches`, `sink-order`, or `merge`.
        rows: initializers that lie side by side along N: those that make an inner axis, or
            that multiply one X.
        columns: the initializer that sums over the inner axis; None for `merge`.
        merged: pieces of `rows` of one role are one wide product, split afterwards.
        reason: why, for people.
        again: kernels between the products that run once more, for a second branch; `merge`
            has no use for it.
    """

    lowering: GroupLowering
    rows: tuple[str, ...]
    columns: str | None
    merged: bool
    reason: str
    again: int = 1

    @property
    def weights(self) -> tuple[str, ...]:
        """All members."""
        return self.rows if self.columns is None else (*self.rows, self.columns)

    def to_json(self) -> dict[str, Any]:
        """Returns the group as plain data for plan.json."""
        return {
            "lowering": self.lowering,
            "rows": list(self.rows),
            "columns": self.columns,
            "merged": self.merged,
            "reason": self.reason,
            "again": self.again,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "GroupPlan":
        """Reads what `to_json` wrote."""
        return cls(
            data["lowering"],
            tuple(data["rows"]),
            data["columns"],
            data["merged"],
            data["reason"],
            data.get("again", 1),
        )


@dataclass(frozen=True)
class Plan:
    """The plans of all bound weights, in graph order, and what joins them.

    Attributes:
        weights: one plan a weight.
        groups: no weight is in two of them.
        predicted: with a target, total microseconds before and after, by tokens.
        speedup: over all tokens by their share of the dense time; None without a target.
    """

    weights: tuple[WeightPlan, ...]
    groups: tuple[GroupPlan, ...] = ()
    predicted: tuple[Mapping[str, Any], ...] = ()
    speedup: float | None = None

    def to_json(self) -> str:
        """Returns the whole plan as JSON text."""
        data: dict[str, Any] = {
            "version": 2,
            **({"predicted": list(self.predicted)} if self.predicted else {}),
            **({} if self.speedup is None else {"speedup": self.speedup}),
            "weights": [plan.to_json() for plan in self.weights],
            "groups": [group.to_json() for group in self.groups],
        }
        return json.dumps(data, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Reads what `to_json` wrote; version 1 had no groups."""
        data = parse_json(text)
        return cls(
            tuple(WeightPlan.from_json(entry) for entry in data["weights"]),
            tuple(GroupPlan.from_json(entry) for entry in data.get("groups", ())),
            tuple(data.get("predicted", ())),
            data.get("speedup"),
        )
