"""Gemm to MatMul and Add, so that every lowering has one form to match."""

from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import MatchResult
from onnxscript.rewriter.pattern import RewriteRuleClassBase

from patch_compile.passes.jobs import Jobs
from patch_compile.passes.regions import bias_of
from patch_compile.passes.sites import constant_weight

__all__ = ["MatMulFromGemm"]


class MatMulFromGemm(RewriteRuleClassBase):
    """`Gemm(X, W, B)` -> `X W + B`, for weights that will be lowered.

    With transB a Transpose stands before W; the lowering reads through it, and it goes with
    the original weight. Precondition: alpha = beta = 1 and no transA (`find_sites` refuses
    the rest). The bias is added after the sum instead of with it: equal within rounding.

    `find_region` and `find_attention` look at a graph before this and after it, and must find
    the same: to them a Gemm's bias is the operand of an Add.
    """

    def __init__(self, jobs: Jobs) -> None:
        super().__init__(name=type(self).__name__)
        self.jobs = jobs

    def pattern(self, op: Any, x: Any, w: Any) -> Any:
        """Any Gemm; the bias, if there is one, is read off the node."""
        return op.Gemm(
            x, w, _allow_other_inputs=True, _allow_other_attributes=True, _outputs=["y"]
        )

    def check(self, *_: Any, y: ir.Value, **__: Any) -> MatchResult:
        """Accepts a Gemm whose weight has a job."""
        result = MatchResult()
        node = y.producer()
        if node is None or self.jobs.find(node) is None:
            return result.fail("the weight has no plan", y)
        return result

    def rewrite(self, op: Any, x: ir.Value, y: ir.Value, **_: Any) -> ir.Value:
        """The product over (K, N), then the bias."""
        node = y.producer()
        assert node is not None
        weight = constant_weight(node)
        assert weight is not None
        value, transposed = weight
        matrix = value if transposed else op.Transpose(value, perm=[1, 0])
        name = node.name or y.name
        bias = bias_of(node)
        if bias is None:
            return self._typed(op.MatMul(x, matrix, _name=name), y)
        product = op.MatMul(
            x, matrix, _name=name, _outputs=[self.jobs.fresh(f"{y.name}/patch/product")]
        )
        return self._typed(
            op.Add(self._typed(product, y), bias, _name=f"{name}/patch/bias"), y
        )

    @staticmethod
    def _typed(value: ir.Value, like: ir.Value) -> ir.Value:
        value.type, value.shape = like.type, like.shape
        return value
