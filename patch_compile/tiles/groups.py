"""The decision for a whole model: weights that are better lowered together, and the rest.

N: out features. K: in features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from patch_compile.recipe import CompileRecipe
from patch_compile.tiles.blocks import (
    Block,
    Structure,
    branch_pieces,
    row_pieces,
    shared_cut,
    sunk_pieces,
)
from patch_compile.tiles.cost import Cost, MultiplyAdds
from patch_compile.tiles.operations import in_order, of_plan
from patch_compile.tiles.plan import BlockLowering, GroupPlan, Plan, WeightPlan
from patch_compile.tiles.planner import NO_BLOCK, plan_weight, saving
from patch_compile.tiles.weight_mask import WeightMask, concatenate

__all__ = ["plan_weights"]

# Forms that a block can take, simplest graph first.
_BLOCK_FORMS: tuple[BlockLowering, ...] = ("branches", "sink-order")
_OVER_ALL_COLUMNS = ("dense", "whole", "columns")


@dataclass(frozen=True)
class _Choice:
    """One way to lower some weights: their plans, and what joins them."""

    plans: tuple[WeightPlan, ...]
    groups: tuple[GroupPlan, ...] = ()


@dataclass(frozen=True)
class _Planner:
    """What every decision of one run reads."""

    masks: Mapping[str, WeightMask]
    recipe: CompileRecipe
    cost: Cost


def plan_weights(
    masks: Mapping[str, Sequence[WeightMask]],
    structure: Structure,
    recipe: CompileRecipe,
    cost: Cost | None = None,
) -> Plan:
    """Plans every weight of a model, alone or with others, whichever costs least.

    Args:
        masks: of every weight, by initializer, in graph order; see `plan_weight`.
        structure: which weights meet in the graph.
        recipe: `lowering` and `min_gain` are read.
        cost: what is saved; None counts multiply-adds. On equal cost the form of fewer
            products, then operations, wins.
    """
    known = {name: concatenate(parts) for name, parts in masks.items()}
    planner = _Planner(known, recipe, cost or MultiplyAdds())
    plans = {name: plan_weight(name, parts, recipe, cost) for name, parts in masks.items()}
    groups: list[GroupPlan] = []
    for block in structure.blocks:
        choice = _of_block(planner, block, plans)
        plans |= {plan.weight: plan for plan in choice.plans}
        groups += choice.groups
    groups += _merges(planner, structure, plans, groups)
    return Plan(tuple(_told(plan, structure) for plan in plans.values()), tuple(groups))


def _of_block(planner: _Planner, block: Block, plans: Mapping[str, WeightPlan]) -> _Choice:
    """The cheapest choice for a block's weights; no group if their own plans are as good."""
    members = tuple(plans[name] for name in block.weights if name in plans)
    forced = planner.recipe.lowering
    forms: list[BlockLowering] = [f for f in _BLOCK_FORMS if forced in ("auto", f)]
    if not forms or all(plan.reason == "every tile is dense" for plan in members):
        return _Choice(members)
    why = _refused(block, plans)
    found = [] if why else [c for f in forms if (c := _grouped(planner, f, block, plans))]
    if not found:
        what = "group of heads" if block.attends else "block of their inner axis"
        why = why or f"no {what} is 2:4 in every weight, and another is not"
        return _Choice(tuple(_noted(plan, forced, why) for plan in members))
    best = min(found, key=lambda choice: _rank(planner, choice))
    apart = _Choice(members, _merge(planner, members[:-1]) if block.one_input else ())
    saved = 1 - _rank(planner, best)[0] / _dense_price(planner, members)
    if forced == "auto" and (
        saved < planner.recipe.min_gain or _rank(planner, apart) <= _rank(planner, best)
    ):
        return _Choice(members)
    return _explained(best, f"{saving(saved, planner.cost)} of {len(members)} weights")


def _refused(block: Block, plans: Mapping[str, WeightPlan]) -> str | None:
    if block.refusal is not None:
        return block.refusal
    for name in block.weights:
        if name not in plans:
            return f"'{name}' has no mask"
        if plans[name].lowering in _BLOCK_FORMS:
            return f"'{name}' is in another group"
        if plans[name].shape[1] % 4:
            return f"in features {plans[name].shape[1]} of '{name}' are not a multiple of 4"
    return None


def _grouped(
    planner: _Planner, form: BlockLowering, block: Block, plans: Mapping[str, WeightPlan]
) -> _Choice | None:
    rows = [planner.masks[name] for name in block.rows]
    last = planner.masks[block.columns]
    heads = block.heads
    cut = shared_cut(rows, last if form == "branches" else None, heads)
    if cut is None:
        return None
    summed = (
        branch_pieces(cut, last.shape)
        if form == "branches"
        else sunk_pieces(cut, last, planner.cost)
    )
    stacks = (1,) * len(rows) if heads is None else heads.stacks
    made = [
        replace(plans[name], lowering=form, pieces=row_pieces(cut, mask.shape, stack))
        for name, mask, stack in zip(block.rows, rows, stacks, strict=True)
    ]
    made.append(replace(plans[block.columns], lowering=form, pieces=summed))
    mergeable = block.one_input and len(rows) > 1
    again = 1 if heads is None else heads.kernels
    choices = [
        _Choice(tuple(made), (GroupPlan(form, block.rows, block.columns, merged, "", again),))
        for merged in ((True, False) if mergeable else (False,))
    ]
    return min(choices, key=lambda choice: _rank(planner, choice))


def _rank(planner: _Planner, choice: _Choice) -> tuple[float, int, int, int]:
    """Price, then products, then all operations, then features moved: less is better."""
    bill = of_plan(Plan(choice.plans, choice.groups))
    return bill.price(planner.cost), len(bill.products), bill.launches, sum(bill.moved)


def _dense_price(planner: _Planner, plans: Sequence[WeightPlan]) -> float:
    return sum(planner.cost.product(*plan.shape, sparse24=False) for plan in plans)


def _merges(
    planner: _Planner,
    structure: Structure,
    plans: Mapping[str, WeightPlan],
    groups: Sequence[GroupPlan],
) -> list[GroupPlan]:
    if planner.recipe.lowering not in ("auto", "merge"):
        return []
    taken = {name for group in groups for name in group.weights}
    merges: list[GroupPlan] = []
    for names in structure.siblings:
        free = [plans[name] for name in names if name in plans and name not in taken]
        merges += _merge(planner, free)
    return merges


def _merge(planner: _Planner, plans: Sequence[WeightPlan]) -> tuple[GroupPlan, ...]:
    """Merges the weights of one X that share a role, if that costs no more; else nothing."""
    whole = [plan for plan in plans if plan.lowering in _OVER_ALL_COLUMNS]
    roles = [piece.role for plan in whole for piece in plan.pieces]
    members = tuple(p for p in whole if any(roles.count(x.role) > 1 for x in p.pieces))
    if "sparse24" not in {piece.role for plan in members for piece in plan.pieces}:
        return ()
    before = sum(len(plan.pieces) for plan in members)
    after = len({piece.role for plan in members for piece in plan.pieces})
    reason = f"one X: {after} wide products in place of {before}"
    group = GroupPlan("merge", tuple(plan.weight for plan in members), None, True, reason)
    merged, apart = _Choice(members, (group,)), _Choice(members)
    return (group,) if _rank(planner, merged) < _rank(planner, apart) else ()


def _noted(plan: WeightPlan, forced: str, why: str) -> WeightPlan:
    """Says why a weight is in no group, where the recipe asked for one."""
    if forced == "auto" or plan.lowering in _BLOCK_FORMS:
        return plan
    return replace(plan, reason=f"'{forced}' was forced but {why}")


def _explained(choice: _Choice, reason: str) -> _Choice:
    plans = tuple(replace(plan, reason=reason) for plan in choice.plans)
    return _Choice(plans, tuple(replace(group, reason=reason) for group in choice.groups))


def _told(plan: WeightPlan, structure: Structure) -> WeightPlan:
    """Says why a Gather restores the order of N, where one does."""
    if plan.lowering not in ("columns", "cover") or in_order(plan.pieces):
        return plan
    blocks = [block for block in structure.blocks if plan.weight in block.rows]
    why = NO_BLOCK
    if blocks:
        why = blocks[0].refusal or "the product that sums over it is cut otherwise"
    return replace(plan, reason=f"{plan.reason}; a Gather restores the order: {why}")
