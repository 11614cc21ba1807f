"""From decisions to the report: what is said of each weight.

N: out features. K: in features.
"""

from collections.abc import Mapping
from importlib.metadata import version

import numpy as np

from patch_compile.passes.binding import Binding
from patch_compile.report import PieceReport, WeightReport
from patch_compile.tiles.plan import WeightPlan, indices
from patch_compile.tiles.time_cost import TimeCost, predicted_times
from patch_compile.tiles.weight_mask import WeightMask

__all__ = ["target_facts", "versions", "weight_report"]


def weight_report(
    binding: Binding,
    plan: WeightPlan,
    mask: WeightMask,
    *,
    lowered: bool,
    restore: bool,
    checked: Mapping[str, str],
    cost: TimeCost | None = None,
) -> WeightReport:
    """Describes one weight of a compile.

    Args:
        binding: the weight and its masks.
        plan: its decision.
        mask: its masks, stacked.
        lowered: the plan changes the model; a weight that loses nothing stays as it is.
        restore: dense pieces hold their unpruned values.
        checked: by mask name, whether the weight's digest matched.
        cost: predicts times; None predicts none.
    """
    n, k = mask.shape
    verdicts = {checked.get(name, "unknown") for name in plan.masks}
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
        digest="match" if verdicts == {"match"} else "unknown",
        eligible=sum(piece.role == "sparse24" for piece in plan.pieces),
        predicted=() if cost is None else predicted_times(mask.shape, plan.pieces, cost),
    )


def _zeros(plan: WeightPlan, mask: WeightMask, restore: bool) -> int:
    """Zeros that the compiled weight has; `restore` leaves those of 2:4 pieces alone."""
    if not restore:
        return mask.zeros()
    keep = mask.keep()
    sparse = [piece for piece in plan.pieces if piece.role == "sparse24"]
    blocks = [keep[np.ix_(indices(p.rows), indices(p.columns))] for p in sparse]
    return sum(block.size - int(np.count_nonzero(block)) for block in blocks)


def target_facts(cost: TimeCost | None) -> dict[str, str] | None:
    """What times are predicted for and from, for report.json."""
    if cost is None:
        return None
    return {"name": cost.target.name, "basis": cost.target.basis}


def versions() -> dict[str, str]:
    """The releases of this package and of those that shape its output."""
    names = ("patch-compile", "onnx", "onnx-ir", "onnxscript", "numpy")
    return {name: version(name) for name in names}
