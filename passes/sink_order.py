"""The `sink-order` lowering."""

from typing import Any

import onnx_ir as ir

from patch_compile.passes.inner_axis import InnerAxisRule
from patch_compile.tiles.plan import by_first

__all__ = ["SinkOrder"]


class SinkOrder(InnerAxisRule):
    """`f(X G, X U) D` -> `Concat(f(X G[d], X U[d]), f(X G[s], X U[s])) D[d, s]`.

    f is elementwise, or an attention between groups of heads. G and U are cut along N into
    dense rows d and 2:4 rows s, as `columns` cuts them, and D takes its rows of K in the order
    of the Concat: no Gather restores any order.

    Precondition: a region that `find_region` accepts, or an attention that `find_attention`
    does; G and U cut at the same features, in whole groups of 4 so that D's stay 2:4; D's
    pieces take all of K, in that order. The sum over K runs in another order: equal within
    rounding.
    """

    lowering = "sink-order"

    def rewrite(self, op: Any, y: ir.Value, **_: Any) -> ir.Value:
        """Both halves side by side, and the last product over them."""
        emit = self.emit(op, y)
        halves = self.halves(op, y)
        rows = self.pieces_before(y)
        inner = emit.concat([halves[index] for index in by_first(rows)])
        pieces = emit.job.plan.pieces
        return emit.join(
            [(emit.product(inner, index), piece.rows) for index, piece in enumerate(pieces)]
        )
