"""From decisions to the report: what is said of each weight.

N: out features. K: in features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version

import numpy as np

from patch_compile.passes.binding import Binding
from patch_compile.report import (
    GroupReport,
    PieceReport,
    PredictedTime,
    Report,
    WeightReport,
)
from patch_compile.targets.target import ASSUMED
from patch_compile.tiles.operations import of_group
from patch_compile.tiles.plan import GroupPlan, Plan, WeightPlan, indices
from patch_compile.tiles.tile_map import tile_map
from patch_compile.tiles.time_cost import TimeCost, predicted_times, shared_times
from patch_compile.tiles.weight_mask import WeightMask

__all__ = [
    "group_reports",
    "predictions",
    "target_facts",
    "versions",
    "weight_report",
    "with_digests",
]


def weight_report(
    binding: Binding,
    plan: WeightPlan,
    mask: WeightMask,
    *,
    lowered: bool,
    restore: bool,
    group: GroupPlan | None = None,
    predicted: tuple[PredictedTime, ...] = (),
) -> WeightReport:
    """Describes one weight of a compile; its digest is not compared yet.

    Args:
        binding: the weight and its masks.
        plan: its decision.
        mask: its masks, stacked.
        lowered: the plan changes the model; a weight that loses nothing stays as it is.
        restore: dense pieces hold their unpruned values.
        group: what it is lowered with, if anything.
        predicted: microseconds on the target; none without one.
    """
    n, k = mask.shape
    return WeightReport(
        weight=plan.weight,
        masks=plan.masks,
        shape=(n, k),
        dtype=binding.site.weight.tensor.dtype.name.lower(),
        geometry=mask.geometry,
        sparsity=_zeros(plan, mask, restore) / (n * k),
        sparse_tile_share=mask.sparse_share,
        lowering=plan.lowering if lowered else "untouched",
        reason=plan.reason,
        pieces=tuple(PieceReport(piece.role, piece.shape) for piece in plan.pieces),
        macs=n * k,
        macs_kept=plan.macs,
        bound_by=binding.how,
        digest="unknown",
        eligible=sum(piece.role == "sparse24" for piece in plan.pieces),
        tile_map=tile_map(mask.grid, mask.dense, plan.pieces),
        group=None if group is None else group.lowering,
        predicted=predicted,
    )


def with_digests(report: Report, checked: Mapping[str, str]) -> Report:
    """Adds to a report what is known of digests, `match` or `unknown` by mask name."""
    weights = [
        replace(weight, digest="match")
        if {checked.get(name) for name in weight.masks} == {"match"}
        else weight
        for weight in report.weights
    ]
    return replace(report, weights=tuple(weights))


def predictions(plan: Plan, cost: TimeCost) -> dict[str, tuple[PredictedTime, ...]]:
    """Predicts every weight's time, of those in groups their share of the group's."""
    plans = {weight.weight: weight for weight in plan.weights}
    times = {p.weight: predicted_times(p.shape, p.pieces, cost) for p in plan.weights}
    for group in plan.groups:
        members = [plans[name] for name in group.weights]
        times |= shared_times(members, of_group(group, members), cost)
    return times


def group_reports(plan: Plan) -> tuple[GroupReport, ...]:
    """Describes what joins the weights of a plan."""
    plans = {weight.weight: weight for weight in plan.weights}
    return tuple(_group_report(g, [plans[name] for name in g.weights]) for g in plan.groups)


def _group_report(group: GroupPlan, plans: Sequence[WeightPlan]) -> GroupReport:
    products = tuple(
        PieceReport(role, (n, k)) for n, k, role in of_group(group, plans).products
    )
    return GroupReport(group.lowering, group.weights, products, group.reason)


def _zeros(plan: WeightPlan, mask: WeightMask, restore: bool) -> int:
    """Zeros that the compiled weight has; `restore` leaves those of 2:4 pieces alone."""
    if not restore:
        return mask.zeros()
    keep = mask.keep()
    # A `rest` lies over the piece that holds the `first` of the same groups.
    sparse = [p for p in plan.pieces if p.role == "sparse24" and p.part != "rest"]
    blocks = [keep[np.ix_(indices(p.rows), indices(p.columns))] for p in sparse]
    return sum(block.size - int(np.count_nonzero(block)) for block in blocks)


def target_facts(cost: TimeCost | None) -> dict[str, str] | None:
    """What times are predicted for and from, for report.json."""
    if cost is None:
        return None
    basis = cost.target.basis_at(tokens for tokens, _ in cost.rates)
    return {"name": cost.target.name, "basis": basis, "assumed": ASSUMED}


def versions() -> dict[str, str]:
    """The releases of this package and of those that shape its output."""
    names = ("patch-compile", "onnx", "onnx-ir", "onnxscript", "numpy")
    return {name: version(name) for name in names}
