"""The `reduction` lowering."""

from typing import Any

import onnx_ir as ir

from patch_compile.passes.lowering import LoweringRule

__all__ = ["TilePartitionReduction"]


class TilePartitionReduction(LoweringRule):
    """`X W` -> `X[:, C] W[C] + X[:, ~C] W[~C]`, W cut along K.

    Precondition: one dense piece over the strips C of K, one 2:4 piece over the others, both
    over all of N; strips are whole groups of 4. The sum over K is regrouped: equal within
    rounding, not bit-exact.
    """

    lowering = "reduction"

    def rewrite(self, op: Any, x: ir.Value, y: ir.Value, **_: Any) -> ir.Value:
        """Two shorter products, added."""
        emit = self.emit(op, y)
        dense, sparse = emit.job.plan.pieces
        return emit.add(
            emit.product(emit.take(x, dense.columns, "x_dense"), 0),
            emit.product(emit.take(x, sparse.columns, "x_sparse24"), 1),
        )
