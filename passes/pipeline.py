"""The rewrite as onnx_ir passes: lower, tidy, check."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes import (
    InPlacePass,
    PassError,
    PassResult,
    PreconditionError,
    Sequential,
)
from onnx_ir.passes.common import InlinePass, RemoveUnusedNodesPass
from onnxscript.rewriter.pattern import RewriteRule, RewriteRuleSet

from patch_compile.errors import InternalError, ModelError
from patch_compile.passes.branches import SplitBranches
from patch_compile.passes.columns import TilePartitionColumns
from patch_compile.passes.cover import TilePartitionCover
from patch_compile.passes.dense import MaskDenseMatMul
from patch_compile.passes.gemm import MatMulFromGemm
from patch_compile.passes.jobs import Jobs
from patch_compile.passes.legal import Interface, check_legal
from patch_compile.passes.lowering import LoweringRule, as_rule
from patch_compile.passes.merge import MergeMatMuls
from patch_compile.passes.reduction import TilePartitionReduction
from patch_compile.passes.residual import ResidualMatMul
from patch_compile.passes.sink_order import SinkOrder
from patch_compile.passes.sites import STAMP
from patch_compile.passes.whole import WholeMatMul

__all__ = [
    "LOWERING_RULES",
    "LowerMatMulsPass",
    "inline",
    "lower",
    "node_names",
    "value_names",
]

# A language model of 100 layers has some 20,000 nodes, and calls its functions 3 deep.
_NODES = 100_000
_CALLS = 32

LOWERING_RULES: tuple[type[LoweringRule], ...] = (
    MaskDenseMatMul,
    WholeMatMul,
    TilePartitionColumns,
    TilePartitionReduction,
    TilePartitionCover,
    ResidualMatMul,
    SplitBranches,
    SinkOrder,
    MergeMatMuls,
)


@dataclass(frozen=True)
class LowerMatMulsPass(InPlacePass):
    """Applies every job's lowering to every product of its weight.

    1. Gemm over a planned weight becomes MatMul and Add.
    2. Each MatMul takes the one rule that its plan, or its group's, names.

    Leaves behind weights that nothing uses any more; `RemoveUnusedNodesPass` takes them.
    """

    jobs: Jobs

    def call(self, model: ir.Model) -> PassResult:
        """Rewrites the model in place."""
        gemm = MatMulFromGemm(self.jobs)
        count = RewriteRuleSet(
            [RewriteRule(gemm.pattern, gemm.rewrite, gemm.check, name=gemm.name)]
        ).apply_to_model(model)
        rules = [as_rule(rule(self.jobs)) for rule in LOWERING_RULES]
        count += RewriteRuleSet(rules).apply_to_model(model)
        return PassResult(model, modified=count > 0)


def inline(model: ir.Model) -> None:
    """Inlines model-local functions: the engine adds no initializers inside them.

    Raises:
        ModelError: if a function was written for another opset than the model, calls itself,
            or grows beyond all measure.
    """
    if not model.functions:
        return
    _check_growth(model)
    try:
        InlinePass()(model)
    except (ValueError, PassError, PreconditionError) as error:
        raise ModelError(
            f"model | its functions cannot be inlined: {error}; inline them with "
            "onnx.inliner, or export without functions"
        ) from error


def _check_growth(model: ir.Model) -> None:
    """A few functions that call each other twice make more nodes than any memory holds."""
    sizes: dict[ir.OperatorIdentifier, int] = {}

    def grown(nodes: Iterable[ir.Node], callers: tuple[ir.OperatorIdentifier, ...]) -> int:
        total = 0
        for node in nodes:
            name = node.op_identifier()
            if name in callers or len(callers) > _CALLS:
                raise ModelError(
                    f"model | its function '{node.op_type}' calls itself, or others more than "
                    f"{_CALLS} deep; export without functions"
                )
            if name in model.functions and name not in sizes:
                sizes[name] = grown(_nodes(model.functions[name]), (*callers, name))
            total += sizes.get(name, 1)
        return total

    total = grown(_nodes(model.graph), ())
    if total > _NODES:
        raise ModelError(
            f"model | its functions grow to {total} nodes; expected at most {_NODES}; export "
            "without functions"
        )


def _nodes(graph: ir.Graph | ir.Function) -> Iterator[ir.Node]:
    yield from ir.traversal.RecursiveGraphIterator(graph)


def lower(model: ir.Model, jobs: Jobs) -> None:
    """Rewrites `model` in place and checks that the result is legal.

    Raises:
        InternalError: if a promise of the rewrite does not hold.
    """
    if not jobs.by_weight:
        return
    # From IR version 4 on initializers need not be graph inputs as well; pieces are none.
    model.ir_version = max(4, model.ir_version)
    before = Interface.of(model)
    Sequential(LowerMatMulsPass(jobs), RemoveUnusedNodesPass())(model)
    model.metadata_props[STAMP] = jobs.stamp
    _check_all_lowered(jobs)
    check_legal(model, before)


def _check_all_lowered(jobs: Jobs) -> None:
    for job in jobs.by_weight.values():
        for index in range(len(job.plan.pieces)):
            if (job.plan.weight, index) not in jobs.made:
                raise InternalError(
                    f"weight '{job.plan.weight}' | is planned '{job.plan.lowering}' but its "
                    f"piece {index} was never made"
                )


def node_names(model: ir.Model) -> set[str]:
    """Every node name of the model, in all its graphs."""
    nodes = ir.traversal.RecursiveGraphIterator(model.graph)
    return {node.name or "" for node in nodes}


def value_names(model: ir.Model) -> set[str]:
    """Every value name of the model, in all its graphs."""
    names: set[str] = set()
    for graph in model.graphs():
        names.update(
            value.name or "" for value in (*graph.inputs, *graph.initializers.values())
        )
        names.update(value.name or "" for node in graph for value in node.outputs)
    return names
