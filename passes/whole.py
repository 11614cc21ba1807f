"""The `whole` lowering."""

from typing import Any

import onnx_ir as ir

from patch_compile.passes.lowering import LoweringRule

__all__ = ["WholeMatMul"]


class WholeMatMul(LoweringRule):
    """`X W` -> `X (W * mask)` where W * mask is 2:4 along all of K.

    Precondition: every tile is sparse. Bit-exact.
    """

    lowering = "whole"

    def rewrite(self, op: Any, x: ir.Value, y: ir.Value, **_: Any) -> ir.Value:
        """The same product over the 2:4 weight."""
        return self.emit(op, y).product(x, 0)
