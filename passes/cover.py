"""The `cover` lowering."""

from typing import Any

import onnx_ir as ir

from patch_compile.passes.lowering import LoweringRule

__all__ = ["TilePartitionCover"]


class TilePartitionCover(LoweringRule):
    """`X W` -> `order(Concat(X W[D], X[:, C] W[~D, C] + X[:, ~C] W[~D, ~C]))`.

    D are the rows of N and C the strips of K of a vertex cover of the dense tiles, so the
    last product is 2:4 whatever the tile map.

    Precondition: three pieces in that order. The sum over K is regrouped: equal within
    rounding, not bit-exact.
    """

    lowering = "cover"

    def rewrite(self, op: Any, x: ir.Value, y: ir.Value, **_: Any) -> ir.Value:
        """A band of dense rows, and the rest as a sum of a dense and a 2:4 product."""
        emit = self.emit(op, y)
        band, strips, sparse = emit.job.plan.pieces
        rest = emit.add(
            emit.product(emit.take(x, strips.columns, "x_dense"), 1),
            emit.product(emit.take(x, sparse.columns, "x_sparse24"), 2),
        )
        return emit.join([(emit.product(x, 0), band.rows), (rest, sparse.rows)])
