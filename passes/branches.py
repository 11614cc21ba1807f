"""The `branches` lowering."""

from typing import Any

import onnx_ir as ir

from patch_compile.passes.inner_axis import InnerAxisRule

__all__ = ["SplitBranches"]


class SplitBranches(InnerAxisRule):
    """`f(X G, X U) D` -> `f(X G[d], X U[d]) D[d] + f(X G[s], X U[s]) D[s]`.

    d are the features of the inner axis that are dense in some weight, s those that are 2:4
    in all: G and U are cut along N, D along K, f runs once a branch with its own part of every
    bias. f is elementwise, or it is an attention and treats groups of heads alike: then d and
    s are whole groups, and G, U, ... are q, k and v. No Concat, no Gather, one Add.

    Precondition: a region that `find_region` accepts, or an attention that `find_attention`
    does; every weight has a dense and a 2:4 piece, cut at the same features or groups. The
    last sum is regrouped: equal within rounding.
    """

    lowering = "branches"

    def rewrite(self, op: Any, y: ir.Value, **_: Any) -> ir.Value:
        """A dense and a 2:4 branch, added."""
        dense, sparse = self.halves(op, y)
        emit = self.emit(op, y)
        return emit.add(emit.product(dense, 0), emit.product(sparse, 1))
