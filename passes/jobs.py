"""What one compile has to do: the job of each weight, and what was made of it so far.

N: out features. K: in features.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from patch_compile.io.piece_tensor import PieceTensor
from patch_compile.io.stored_weight import StoredWeight
from patch_compile.passes.binding import Binding
from patch_compile.passes.sites import constant_weight
from patch_compile.tiles.plan import GroupPlan, Piece, Plan, WeightPlan
from patch_compile.tiles.weight_mask import WeightMask

__all__ = ["Job", "Jobs", "jobs_of"]


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

    `stamp` is written into the model's metadata: it names the masks that were taken. `groups`
    has the group of every weight that is lowered with others, by the plans' own names;
    `outputs` are those of weights whose group was made at another's product.

    A weight that two MatMuls share gets one set of pieces: they are named after the first
    output that needs them and reused for the next.
    """

    # Left out of repr: passes print themselves in errors, and this is the whole model.
    by_weight: Mapping[str, Job] = field(repr=False)
    taken: set[str] = field(repr=False)
    nodes: set[str] = field(repr=False)
    stamp: str = ""
    groups: Mapping[str, GroupPlan] = field(default_factory=dict, repr=False)
    opset: int = 20
    made: dict[tuple[str, int], ir.Value] = field(default_factory=dict, repr=False)
    outputs: dict[str, ir.Value] = field(default_factory=dict, repr=False)

    def find(self, node: ir.Node) -> Job | None:
        """Returns the job of the weight a node multiplies by, if there is one."""
        weight = constant_weight(node)
        return None if weight is None else self.by_weight.get(weight[0].name or "")

    def group(self, job: Job) -> GroupPlan | None:
        """Returns the group of a job's weight."""
        return self.groups.get(job.plan.weight)

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


def jobs_of(
    plan: Plan, work: Iterable[tuple[Binding, WeightPlan, WeightMask]], *, restore: bool
) -> dict[str, Job]:
    """Lists the jobs of the weights that change or are lowered with others, by name.

    Args:
        plan: of the whole model.
        work: every weight, its plan, and its masks stacked.
        restore: dense pieces take the unpruned values.
    """
    grouped = {name for group in plan.groups for name in group.weights}
    return {
        weight.weight: Job(weight, b.site.weight, mask.bits, restore, b.site.aliases)
        for b, weight, mask in work
        if weight.weight in grouped or _changes(weight, mask, restore)
    }


def _changes(plan: WeightPlan, mask: WeightMask, restore: bool) -> bool:
    """Whether the model's bytes change: an all-dense piece may keep its weight as it is."""
    return plan.lowering != "dense" or (not restore and mask.zeros() > 0)
