"""What the lowering rules share: how they match, and the nodes that they write.

N: out features. K: in features. M: tokens (every leading axis of X).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnxscript.rewriter import MatchResult
from onnxscript.rewriter.pattern import RewriteRule, RewriteRuleClassBase

from patch_compile.io.piece_tensor import PieceTensor, StackedTensor
from patch_compile.passes.jobs import Job, Jobs
from patch_compile.passes.sites import LOWERING, ROLE, WEIGHT
from patch_compile.tiles.plan import (
    GroupLowering,
    Lowering,
    Span,
    block_size,
    indices,
    length,
)

__all__ = ["Emitter", "LoweringRule", "as_rule", "products", "wide_product"]


class LoweringRule(RewriteRuleClassBase):
    """`MatMul(X, W)` whose weight's plan names this lowering.

    Subclasses give `lowering` and `rewrite`. The rule cannot match its own output: pieces
    have names that no job has.
    """

    lowering: Lowering | GroupLowering

    def __init__(self, jobs: Jobs) -> None:
        super().__init__(name=type(self).__name__)
        self.jobs = jobs

    def pattern(self, op: Any, x: Any, w: Any) -> Any:
        """The product, under the name that `rewrite` finds the original by."""
        return op.MatMul(x, w, _outputs=["y"])

    def check(self, *_: Any, y: ir.Value, **__: Any) -> MatchResult:
        """Accepts a product whose weight has a job with this lowering."""
        result = MatchResult()
        node = y.producer()
        job = None if node is None else self.jobs.find(node)
        if job is None:
            return result.fail("the weight has no plan", y)
        group = self.jobs.group(job)
        planned = job.plan.lowering if group is None else group.lowering
        if planned != self.lowering:
            return result.fail(f"the plan says '{planned}'", y)
        if group is not None and group.columns not in (None, job.plan.weight):
            return result.fail("it goes with the product that sums over its features", y)
        return result

    def emit(self, op: Any, y: ir.Value) -> "Emitter":
        """Starts the replacement of the product that made `y`."""
        node = y.producer()
        assert node is not None
        job = self.jobs.find(node)
        assert job is not None
        return Emitter(op, self.jobs, job, y)


def as_rule(rule: LoweringRule) -> RewriteRule:
    """Binds a rule instance; `instance.rule()` would build another without its jobs."""
    return RewriteRule(rule.pattern, rule.rewrite, rule.check, name=rule.name)


@dataclass(frozen=True)
class Emitter:
    """Writes the nodes that replace one product.

    Every node is named `<old>/patch/<what>`, every value and initializer after the replaced
    output, and every value gets the element type and the shape it will have.
    """

    op: Any
    jobs: Jobs
    job: Job
    y: ir.Value

    def product(self, x: ir.Value, index: int) -> ir.Value:
        """`X @ W_piece`, marked with the piece's role."""
        piece = self.job.plan.pieces[index]
        return self.multiply(x, self._piece(index), piece.role, f"{piece.role}_{index}")

    def multiply(self, x: ir.Value, weight: ir.Value, role: str, label: str) -> ir.Value:
        """`X @ W` for a weight that a rule made, marked with its role."""
        assert weight.const_value is not None
        width = int(weight.const_value.shape.numpy()[1])
        out = self._call("MatMul", [x, weight], label, self._like(x, width))
        node = out.producer()
        assert node is not None
        group = self.jobs.group(self.job)
        lowering = self.job.plan.lowering if group is None else group.lowering
        node.metadata_props[ROLE] = role
        node.metadata_props[LOWERING] = lowering
        node.metadata_props[WEIGHT] = "+".join(self.job.plan.masks)
        return out

    def take(self, x: ir.Value, spans: Sequence[Span], label: str) -> ir.Value:
        """`X[..., spans]`: the columns of X that a piece multiplies."""
        k = self.job.plan.shape[1]
        if tuple(spans) == ((0, k),):
            return x
        if len(spans) == 1:
            return self._slice(x, spans[0], label)
        return self._gather(x, k, indices(spans), block_size(spans, k), label)

    def join(self, outputs: Sequence[tuple[ir.Value, Sequence[Span]]]) -> ir.Value:
        """Concatenates outputs along N and restores the order of N.

        Parts are sorted by their first row, so that contiguous parts need no Gather.
        """
        if len(outputs) == 1:
            return outputs[0][0]
        parts = sorted(outputs, key=lambda part: part[1][0])
        whole = self.concat([value for value, _ in parts])
        n = length([span for _, spans in parts for span in spans])
        order = np.concatenate([indices(spans) for _, spans in parts])
        if np.array_equal(order, np.arange(n)):
            return whole
        block = block_size([span for _, spans in parts for span in spans], n)
        return self._gather(whole, n, np.argsort(order), block, "order")

    def concat(self, values: Sequence[ir.Value]) -> ir.Value:
        """Puts values side by side along their last axis."""
        widths = [value.shape[-1] for value in values if value.shape is not None]
        known = [width for width in widths if isinstance(width, int)]
        shape = self._like(values[0], sum(known)) if len(known) == len(values) else None
        return self._call("Concat", values, "concat", shape, axis=-1)

    def split(self, value: ir.Value, sizes: Sequence[int], label: str) -> list[ir.Value]:
        """Cuts the last axis into parts of these sizes."""
        node = self.y.producer()
        assert node is not None
        names = [
            self.jobs.fresh(f"{self.y.name}/patch/{label}_{i}") for i in range(len(sizes))
        ]
        # Up to opset 12 the sizes are an attribute.
        old = self.jobs.opset < 13
        inputs = [value] if old else [value, self._constant(sizes, f"{label}.sizes")]
        made: Sequence[ir.Value] = self.op.op(
            "Split",
            *inputs,
            _outputs=names,
            _name=self.jobs.fresh_node(f"{node.name or self.y.name}/patch/{label}"),
            axis=-1,
            **({"split": list(sizes)} if old else {}),
        )
        for part, size in zip(made, sizes, strict=True):
            shape = self._like(value, size)
            part.type, part.shape = value.type, None if shape is None else ir.Shape(shape)
        return list(made)

    def add(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """Adds two partial sums over K."""
        return self._call("Add", [a, b], "add", a.shape)

    def _piece(self, index: int) -> ir.Value:
        key = (self.job.plan.weight, index)
        if key not in self.jobs.made:
            role = self.job.plan.pieces[index].role
            name = self.jobs.fresh(f"{self.y.name}/patch/{role}_{index}.weight")
            self.jobs.made[key] = self.op.initializer(self.tensor(index, name), name)
        return self.jobs.made[key]

    def tensor(self, index: int, name: str) -> PieceTensor:
        """Describes the data of one piece of the plan."""
        return self.job.tensor(self.job.plan.pieces[index], name)

    def _slice(self, x: ir.Value, span: Span, label: str) -> ir.Value:
        start, stop = span
        bounds = [
            self._constant([start], f"{label}.start"),
            self._constant([stop], f"{label}.stop"),
        ]
        axis = self._constant([-1], f"{label}.axis")
        return self._call("Slice", [x, *bounds, axis], label, self._like(x, stop - start))

    def _gather(
        self, x: ir.Value, width: int, order: NDArray[np.int64], block: int, label: str
    ) -> ir.Value:
        """`X[..., order]` of an X (..., width), moved in blocks of consecutive elements.

        A Gather along the last axis copies single elements; with the axis split into
        (blocks, block) it copies whole runs. That needs the rank of X.
        """
        if x.shape is None or block == 1:
            chosen = self._constant(order, f"{label}.index")
            return self._call("Gather", [x, chosen], label, self._like(x, order.size), axis=-1)
        lead = list(x.shape)[:-1]
        # Zeros copy the leading axes, whatever they are at run time.
        kept = [0] * len(lead)
        split = self._constant([*kept, width // block, block], f"{label}.split")
        chosen = self._constant(order[::block] // block, f"{label}.index")
        flat = self._constant([*kept, order.size], f"{label}.flat")
        blocked = [*lead, width // block, block]
        runs = self._call("Reshape", [x, split], f"{label}_split", blocked)
        moved = [*lead, order.size // block, block]
        gathered = self._call("Gather", [runs, chosen], label, moved, axis=-2)
        return self._call("Reshape", [gathered, flat], f"{label}_flat", [*lead, order.size])

    def _constant(self, numbers: Any, label: str) -> ir.Value:
        name = self.jobs.fresh(f"{self.y.name}/patch/{label}")
        value: ir.Value = self.op.initializer(
            ir.tensor(np.asarray(numbers, np.int64), name=name)
        )
        return value

    def _like(self, x: ir.Value, width: int) -> Any:
        return None if x.shape is None else [*list(x.shape)[:-1], width]

    def _call(
        self, kind: str, inputs: Sequence[ir.Value], label: str, shape: Any, **attributes: Any
    ) -> ir.Value:
        node = self.y.producer()
        assert node is not None
        name = self.jobs.fresh(f"{self.y.name}/patch/{label}")
        out: ir.Value = self.op.op(
            kind,
            *inputs,
            _outputs=[name],
            _name=self.jobs.fresh_node(f"{node.name or self.y.name}/patch/{label}"),
            **attributes,
        )
        # A graph may leave the product's type open; every value here has the weight's.
        out.type = self.y.type or ir.TensorType(self.job.weight.tensor.dtype)
        out.shape = None if shape is None else ir.Shape(shape)
        return out


def products(
    x: ir.Value, parts: Sequence[tuple[Emitter, int]], *, merged: bool
) -> list[ir.Value]:
    """`X @ W` for pieces of one role over all of K: one product each, or a wide one, split."""
    if not merged or len(parts) == 1:
        return [emit.product(x, index) for emit, index in parts]
    emit, first = parts[0]
    role = emit.job.plan.pieces[first].role
    sizes = [each.job.plan.pieces[index].shape[0] for each, index in parts]
    return emit.split(wide_product(x, parts), sizes, f"{role}_split")


def wide_product(x: ir.Value, parts: Sequence[tuple[Emitter, int]]) -> ir.Value:
    """`X @ [W_a W_b ...]` over pieces of one role, side by side along N."""
    if len(parts) == 1:
        return parts[0][0].product(x, parts[0][1])
    emit, first = parts[0]
    role = emit.job.plan.pieces[first].role
    name = emit.jobs.fresh(f"{emit.y.name}/patch/{role}_wide.weight")
    tensor = StackedTensor([each.tensor(index, name) for each, index in parts], name)
    weight = emit.op.initializer(tensor, name)
    for each, index in parts:
        emit.jobs.made[each.job.plan.weight, index] = weight
    out = emit.multiply(x, weight, role, f"{role}_wide")
    node = out.producer()
    assert node is not None
    masks = dict.fromkeys(name for each, _ in parts for name in each.job.plan.masks)
    node.metadata_props[WEIGHT] = "+".join(masks)
    return out
