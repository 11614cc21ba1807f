"""Plans: how each masked MatMul is cut into pieces. Data only; `planner` decides.

N: out features. K: in features.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "LOWERINGS",
    "Lowering",
    "Piece",
    "Plan",
    "Role",
    "Span",
    "WeightPlan",
    "block_size",
    "indices",
    "length",
]

Role = Literal["dense", "sparse24"]
Lowering = Literal["dense", "whole", "columns", "reduction", "cover"]
Span = tuple[int, int]

LOWERINGS: tuple[Lowering, ...] = ("dense", "whole", "columns", "reduction", "cover")


def indices(spans: Sequence[Span]) -> NDArray[np.int64]:
    """Lists every index that the spans hold, int64, in order."""
    return np.concatenate([np.arange(start, stop, dtype=np.int64) for start, stop in spans])


def block_size(spans: Sequence[Span], size: int) -> int:
    """The largest block of an axis of `size` that every span edge is a multiple of."""
    return math.gcd(size, *(edge for span in spans for edge in span))


def length(spans: Sequence[Span]) -> int:
    """Counts the indices that the spans hold."""
    return sum(stop - start for start, stop in spans)


@dataclass(frozen=True)
class Piece:
    """One MatMul after the rewrite: the block `rows` x `columns` of the (N, K) weight.

    Attributes:
        role: `dense`, or `sparse24` when every group of 4 along its own K keeps at most 2.
        rows: half-open spans of N, sorted and disjoint.
        columns: half-open spans of K, sorted and disjoint.
    """

    role: Role
    rows: tuple[Span, ...]
    columns: tuple[Span, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return length(self.rows), length(self.columns)

    @property
    def macs(self) -> int:
        """Multiply-adds for one token, zeros counted: rows x columns."""
        return self.shape[0] * self.shape[1]


@dataclass(frozen=True)
class WeightPlan:
    """How one initializer is lowered.

    Attributes:
        weight: the initializer's name in the model.
        masks: names of the masks it takes, in order along N (several when fused).
        shape: (N, K).
        lowering: which rewrite applies.
        pieces: disjoint blocks that together hold the whole weight.
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
            "pieces": [
                {"role": p.role, "rows": list(p.rows), "columns": list(p.columns)}
                for p in self.pieces
            ],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "WeightPlan":
        """Reads what `to_json` wrote."""
        pieces = tuple(
            Piece(p["role"], _spans(p["rows"]), _spans(p["columns"])) for p in data["pieces"]
        )
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
class Plan:
    """The plans of all bound weights, in graph order.

    Attributes:
        weights: of every weight.
        predicted: with a target, total microseconds before and after, by tokens.
    """

    weights: tuple[WeightPlan, ...]
    predicted: tuple[Mapping[str, Any], ...] = ()

    def to_json(self) -> str:
        """Returns the whole plan as JSON text."""
        data: dict[str, Any] = {"version": 1}
        if self.predicted:
            data["predicted"] = list(self.predicted)
        data["weights"] = [plan.to_json() for plan in self.weights]
        return json.dumps(data, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Reads what `to_json` wrote."""
        data = json.loads(text)
        plans = tuple(WeightPlan.from_json(entry) for entry in data["weights"])
        return cls(plans, tuple(data.get("predicted", ())))
