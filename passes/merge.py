"""The `merge` lowering."""

from typing import Any

import onnx_ir as ir

from patch_compile.passes.lowering import Emitter, LoweringRule, products, wide_product
from patch_compile.tiles.operations import shared_order, stacked

__all__ = ["MergeMatMuls"]


class MergeMatMuls(LoweringRule):
    """`X W_a`, `X W_b`, ... -> `X [D_a D_b ...]` and `X [S_a S_b ...]`, split to each output.

    D are the dense pieces, S the 2:4 ones. Where several weights are cut along N, their order
    is restored for all at once before the split.

    The first of the products makes the outputs of all; the others take theirs when the engine
    comes to them, since no pattern says "any number of products of one X".

    Precondition: pieces over all of K, at most one a role and weight. Every output element is
    the same sum over K: bit-exact up to the order in which a kernel of another width sums.
    """

    lowering = "merge"

    def rewrite(self, op: Any, x: ir.Value, y: ir.Value, **_: Any) -> ir.Value:
        """The output of this product, from what the group's first product made."""
        job = self.emit(op, y).job
        if job.plan.weight not in self.jobs.outputs:
            self._make(self._members(op, x, y), x)
        return self.jobs.outputs[job.plan.weight]

    def _members(self, op: Any, x: ir.Value, y: ir.Value) -> list[Emitter]:
        group = self.jobs.group(self.emit(op, y).job)
        assert group is not None
        found = {}
        for use in x.uses():
            job = self.jobs.find(use.node) if use.idx == 0 else None
            if job is not None and job.plan.weight in group.rows:
                found[job.plan.weight] = Emitter(op, self.jobs, job, use.node.outputs[0])
        return [found[name] for name in group.rows]

    def _make(self, members: list[Emitter], x: ir.Value) -> None:
        plans = [emit.job.plan for emit in members]
        if shared_order(plans):
            wide = [
                (wide_product(x, _of_role(members, piece.role)), piece.rows)
                for piece in stacked(plans)
            ]
            sizes = [plan.shape[0] for plan in plans]
            made = members[0].split(members[0].join(wide), sizes, "split")
        else:
            made = self._apart(members, x)
        for plan, value in zip(plans, made, strict=True):
            self.jobs.outputs[plan.weight] = value

    def _apart(self, members: list[Emitter], x: ir.Value) -> list[ir.Value]:
        values = {}
        for piece in stacked([emit.job.plan for emit in members]):
            parts = _of_role(members, piece.role)
            for (emit, index), value in zip(
                parts, products(x, parts, merged=True), strict=True
            ):
                values[emit.job.plan.weight, index] = value
        return [
            emit.join(
                [
                    (values[emit.job.plan.weight, index], piece.rows)
                    for index, piece in enumerate(emit.job.plan.pieces)
                ]
            )
            for emit in members
        ]


def _of_role(members: list[Emitter], role: str) -> list[tuple[Emitter, int]]:
    return [
        (emit, index)
        for emit in members
        for index, piece in enumerate(emit.job.plan.pieces)
        if piece.role == role
    ]
