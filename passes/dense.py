"""The `dense` lowering."""

from typing import Any

import onnx_ir as ir

from patch_compile.passes.lowering import LoweringRule

__all__ = ["MaskDenseMatMul"]


class MaskDenseMatMul(LoweringRule):
    """`X W` -> `X (W * mask)`.

    Precondition: the plan has one dense piece and the mask drops something (else there is
    nothing to do and the weight has no job). Bit-exact.
    """

    lowering = "dense"

    def rewrite(self, op: Any, x: ir.Value, y: ir.Value, **_: Any) -> ir.Value:
        """The same product over the masked weight."""
        return self.emit(op, y).product(x, 0)
