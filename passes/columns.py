"""The `columns` lowering."""

from typing import Any

import onnx_ir as ir

from patch_compile.passes.lowering import LoweringRule

__all__ = ["TilePartitionColumns"]


class TilePartitionColumns(LoweringRule):
    """`X W` -> `order(Concat(X W_dense, X W_sparse))`, W cut along N.

    Precondition: one dense piece over some rows of N, one 2:4 piece over the others, both
    over all of K. Every output element is the same sum over K: bit-exact up to the order in
    which a kernel of another width sums.
    """

    lowering = "columns"

    def rewrite(self, op: Any, x: ir.Value, y: ir.Value, **_: Any) -> ir.Value:
        """Two narrower products, joined along N."""
        emit = self.emit(op, y)
        dense, sparse = emit.job.plan.pieces
        return emit.join([(emit.product(x, 0), dense.rows), (emit.product(x, 1), sparse.rows)])
