"""The report: what was asked, what was decided and why, and what is known of the result.

Four words are kept apart. `requested`: the build asked for sparse kernels. `eligible`: our own
check found the piece 2:4. `chosen`: a build log or an engine inspector named a sparse kernel.
`unknown`: nobody looked. Nothing here depends on a clock, so equal inputs give equal bytes.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = [
    "GroupReport",
    "PieceReport",
    "PredictedTime",
    "Report",
    "TileMap",
    "WeightReport",
]


@dataclass(frozen=True)
class PredictedTime:
    """Microseconds of one weight on the target, predicted, never measured.

    Attributes:
        tokens: of one run.
        before_us: dense.
        after_us: with everything that the rewrite adds.
        parts: of the time after: `dense` and `sparse24` products, and `joining` them.
    """

    tokens: int
    before_us: float
    after_us: float
    parts: Mapping[str, float]


@dataclass(frozen=True)
class PieceReport:
    """One product of the compiled graph: its role and its (rows of N, columns of K)."""

    role: str
    shape: tuple[int, int]


@dataclass(frozen=True)
class TileMap:
    """Which tiles of a weight are 2:4, row by row from the top left, in packed bits.

    Attributes:
        rows: tile sizes along N, equal neighbours counted: `31*128,1*64`.
        columns: tile sizes along K.
        sparse: base64 of one bit a tile, the highest of a byte first: the mask calls it 2:4.
        computed_sparse: the same: a 2:4 piece holds it. A tile that is 2:4 and computed in a
            dense piece saves nothing.
    """

    rows: str
    columns: str
    sparse: str
    computed_sparse: str


@dataclass(frozen=True)
class WeightReport:
    """One weight of the model.

    Attributes:
        weight: the initializer's name in the input model.
        masks: the parameters whose masks it took.
        shape: (N, K).
        dtype: the stored element type.
        geometry: of the tiles.
        sparsity: share of weights that the mask drops, 0 to 1.
        sparse_tile_share: share of the area that lies in 2:4 tiles, 0 to 1.
        lowering: the form it took; `untouched` when no mask was applied.
        reason: why this form.
        pieces: the products it became.
        macs: multiply-adds a token before the rewrite.
        macs_kept: multiply-adds a token after it, a 2:4 piece counting half.
        bound_by: how the mask was found: `name` or `digest`.
        digest: `match`, or `unknown` when the mask stores none for this element type.
        eligible: number of pieces that are 2:4 by our own check of their stored bytes.
        tile_map: None where it has too many tiles to be looked at.
        group: the form it took with other weights, see `Report.groups`; None alone.
        predicted: one entry a number of tokens; none without a target.
    """

    weight: str
    masks: tuple[str, ...]
    shape: tuple[int, int]
    dtype: str
    geometry: str
    sparsity: float
    sparse_tile_share: float
    lowering: str
    reason: str
    pieces: tuple[PieceReport, ...]
    macs: int
    macs_kept: float
    bound_by: str
    digest: str
    eligible: int
    tile_map: TileMap | None = None
    group: str | None = None
    predicted: tuple[PredictedTime, ...] = ()


@dataclass(frozen=True)
class GroupReport:
    """Weights that were lowered together.

    Attributes:
        lowering: `branches`, `sink-order` or `merge`.
        weights: the members' initializers.
        products: what all their pieces became in the graph.
        reason: why.
    """

    lowering: str
    weights: tuple[str, ...]
    products: tuple[PieceReport, ...]
    reason: str


@dataclass(frozen=True)
class Report:
    """All weights, what was left alone and why, and the versions that made it.

    Later verbs add to what is written: `build` its engines, `verify` a `verification`.

    Attributes:
        weights: in graph order.
        left_alone: by name of a mask or weight, the reason.
        recipe: the options of the compile.
        made_by: how the masks were made, as their file says.
        versions: releases by package.
        engines: what is known of each engine.
        inputs: file names of `model` and `masks`, of those that were files.
        totals: sums over the weights.
    """

    weights: tuple[WeightReport, ...]
    left_alone: Mapping[str, str]
    recipe: Mapping[str, Any]
    made_by: Mapping[str, Any]
    versions: Mapping[str, str]
    engines: tuple[Mapping[str, Any], ...] = ()
    inputs: Mapping[str, str] = field(default_factory=dict)
    groups: tuple[GroupReport, ...] = ()
    # What times are predicted for, and what the prediction rests on.
    target: Mapping[str, str] | None = None
    # Numbers of tokens, and the share of the dense model's time that they take.
    profile: tuple[tuple[int, float], ...] = ()
    predicted: tuple[Mapping[str, Any], ...] = field(init=False)
    # Over all of the profile, dense time over the plan's; None without a target.
    speedup: float | None = field(init=False)
    totals: Mapping[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "totals", _totals(self.weights, self.groups))
        name = "" if self.target is None else self.target["name"]
        predicted = _predicted(self.weights, name)
        object.__setattr__(self, "predicted", predicted)
        object.__setattr__(self, "speedup", _speedup(predicted, self.profile))

    def to_json(self) -> str:
        """Returns the whole report as JSON text."""
        # What a mask file says may hold NaN, which is no JSON: it becomes null.
        facts = json.loads(json.dumps(asdict(self)), parse_constant=lambda _: None)
        return json.dumps({"version": 1, **facts}, indent=1, allow_nan=False) + "\n"


def _totals(
    weights: tuple[WeightReport, ...], groups: tuple[GroupReport, ...]
) -> dict[str, Any]:
    area = sum(w.macs for w in weights)
    pieces = [piece for weight in weights for piece in weight.pieces]
    return {
        "weights": len(weights),
        "parameters": area,
        "sparsity": sum(w.sparsity * w.macs for w in weights) / max(1, area),
        "sparse_tile_share": sum(w.sparse_tile_share * w.macs for w in weights) / max(1, area),
        "macs_kept": sum(w.macs_kept for w in weights) / max(1, area),
        "pieces": len(pieces),
        "products": sum(len(w.pieces) for w in weights if w.group is None)
        + sum(len(group.products) for group in groups),
        "eligible": sum(w.eligible for w in weights),
        "chosen": "unknown",
        "lowerings": _counted([w.lowering for w in weights]),
        "groups": _counted([group.lowering for group in groups]),
    }


def _predicted(weights: tuple[WeightReport, ...], target: str) -> tuple[dict[str, Any], ...]:
    """For each number of tokens the sums over the weights; `ratio` is after over before."""
    sums: dict[int, list[float]] = {}
    for time in (time for weight in weights for time in weight.predicted):
        before, after = sums.get(time.tokens, (0.0, 0.0))
        sums[time.tokens] = [before + time.before_us, after + time.after_us]
    return tuple(
        {
            "target": target,
            "tokens": tokens,
            "before_us": before,
            "after_us": after,
            "ratio": after / before,
        }
        for tokens, (before, after) in sums.items()
    )


def _speedup(
    predicted: tuple[Mapping[str, Any], ...], profile: tuple[tuple[int, float], ...]
) -> float | None:
    shares = dict(profile)
    left = sum(shares.get(time["tokens"], 0.0) * time["ratio"] for time in predicted)
    return 1 / left if left > 0 else None


def _counted(names: list[str]) -> dict[str, int]:
    return {name: names.count(name) for name in sorted(set(names))}
