"""The `residual` lowering."""

from typing import Any

import onnx_ir as ir

from patch_compile.passes.lowering import LoweringRule

__all__ = ["ResidualMatMul"]


class ResidualMatMul(LoweringRule):
    """`X W` -> `X A + X[:, C] B`, where A keeps two of every four kept weights, B the rest.

    C are the strips of K that hold a dense tile. A and B are 2:4 both, so no dense product is
    left.

    Precondition: a 2:4 piece over the whole weight, and one over all of N and the strips C.
    The sum over K is regrouped: equal within rounding, not bit-exact.
    """

    lowering = "residual"

    def rewrite(self, op: Any, x: ir.Value, y: ir.Value, **_: Any) -> ir.Value:
        """The first two weights of every group, and what is left of the dense ones."""
        emit = self.emit(op, y)
        strips = emit.job.plan.pieces[1].columns
        return emit.add(emit.product(x, 0), emit.product(emit.take(x, strips, "x_rest"), 1))
