"""What the lowering rules share: the job of each weight, its pieces, and the index moves.

N: out features. K: in features. M: tokens (every leading axis of X).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnxscript.rewriter import MatchResult
from onnxscript.rewriter.pattern import RewriteRule, RewriteRuleClassBase

from patch_compile.io.piece_tensor import PieceTensor, StoredWeight
from patch_compile.passes.sites import LOWERING, ROLE, WEIGHT, constant_weight
from patch_compile.tiles.plan import Lowering, Piece, Span, WeightPlan, block_size, indices

__all__ = ["Emitter", "Job", "Jobs", "LoweringRule", "as_rule"]


@dataclass(frozen=True)
class Job:
    """One weight to lower.

    Attributes:
        plan: the decision.
        weight: the original tensor.
        keep: returns the packed keep mask, uint8 (N, ceil(K/8)), of the whole weight.
        restore: dense pieces take the unpruned values.
        aliases: other values of the graph that hold the same tensor.
    """

    plan: WeightPlan
    weight: StoredWeight
    keep: Callable[[], NDArray[np.uint8]]
    restore: bool
    aliases: tuple[str, ...] = ()

    def tensor(self, piece: Piece, name: str) -> PieceTensor:
        """Describes one piece's data, made when it is written."""
        unpruned = self.restore and piece.role == "dense"
        return PieceTensor(self.weight, piece, None if unpruned else self.keep, name)


@dataclass(frozen=True)
class Jobs:
    """All jobs of one run, by weight name, and the piece values made so far.

    `stamp` is written into the model's metadata: it names the masks that were taken.

    A weight that two MatMuls share gets one set of pieces: they are named after the first
    output that needs them and reused for the next.
    """

    # Left out of repr: passes print themselves in errors, and this is the whole model.
    by_weight: Mapping[str, Job] = field(repr=False)
    taken: set[str] = field(repr=False)
    nodes: set[str] = field(repr=False)
    stamp: str = ""
    made: dict[tuple[str, int], ir.Value] = field(default_factory=dict, repr=False)

    def find(self, node: ir.Node) -> Job | None:
        """Returns the job of the weight a node multiplies by, if there is one."""
        weight = constant_weight(node)
        return None if weight is None else self.by_weight.get(weight[0].name or "")

    def fresh(self, name: str) -> str:
        """Returns a value name that nothing in the model has."""
        return _fresh(name, self.taken)

    def fresh_node(self, name: str) -> str:
        """Returns a node name that nothing in the model has."""
        return _fresh(name, self.nodes)


def _fresh(name: str, taken: set[str]) -> str:
    unique, count = name, 1
    while unique in taken:
        count += 1
        unique = f"{name}_{count}"
    taken.add(unique)
    return unique


class LoweringRule(RewriteRuleClassBase):
    """`MatMul(X, W)` whose weight's plan names this lowering.

    Subclasses give `lowering` and `rewrite`. The rule cannot match its own output: pieces
    have names that no job has.
    """

    lowering: Lowering

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
        if job.plan.lowering != self.lowering:
            return result.fail(f"the plan says '{job.plan.lowering}'", y)
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
        shape = self._like(x, piece.shape[0])
        out = self._call("MatMul", [x, self._piece(index)], f"{piece.role}_{index}", shape)
        node = out.producer()
        assert node is not None
        node.metadata_props[ROLE] = piece.role
        node.metadata_props[LOWERING] = self.job.plan.lowering
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
        parts = sorted(outputs, key=lambda part: part[1][0])
        n = self.job.plan.shape[0]
        whole = self._call(
            "Concat", [value for value, _ in parts], "concat", self._like(self.y, n), axis=-1
        )
        order = np.concatenate([indices(spans) for _, spans in parts])
        if np.array_equal(order, np.arange(n)):
            return whole
        block = block_size([span for _, spans in parts for span in spans], n)
        return self._gather(whole, n, np.argsort(order), block, "order")

    def add(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """Adds two partial sums over K."""
        return self._call("Add", [a, b], "add", a.shape)

    def _piece(self, index: int) -> ir.Value:
        key = (self.job.plan.weight, index)
        if key not in self.jobs.made:
            role = self.job.plan.pieces[index].role
            name = self.jobs.fresh(f"{self.y.name}/patch/{role}_{index}.weight")
            tensor = self.job.tensor(self.job.plan.pieces[index], name)
            self.jobs.made[key] = self.op.initializer(tensor, name)
        return self.jobs.made[key]

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
