"""Free tile maps cut anew into bands or strips that a kernel can use; lossy, on request alone.

A free map of 2:4 tiles rarely has a band that is wholly 2:4. Here as much of the weight goes
2:4 as before, but in whole rows or columns of tiles, those of least score per area. Tiles
that were dense and go 2:4 need a pattern, which the caller makes. R, C: tiles along N and K.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patch_compile.errors import MaskError
from patch_compile.recipe import CompileRecipe
from patch_compile.tiles.cost import Cost, MultiplyAdds
from patch_compile.tiles.operations import price
from patch_compile.tiles.planner import plan_weight
from patch_compile.tiles.weight_mask import WeightMask

__all__ = ["Regrouped", "regroup"]

_NAMES = {1: "bands", 0: "strips"}


@dataclass(frozen=True, eq=False)
class Regrouped:
    """New tile maps of one weight's masks.

    Attributes:
        dense: of each mask, bool (R, C).
        form: `bands` or `strips`.
        before: sum of the scores of the tiles that were 2:4.
        after: of those that are now.
    """

    dense: tuple[NDArray[np.bool_], ...]
    form: str
    before: float
    after: float


def regroup(
    parts: Sequence[WeightMask], recipe: CompileRecipe, cost: Cost | None = None
) -> Regrouped | None:
    """Cuts one weight's tile maps anew, if that makes its plan cheaper.

    Args:
        parts: the masks of one initializer, in order along N.
        recipe: what the planner reads.
        cost: what is saved; None counts multiply-adds.

    Returns:
        The form of the cheaper plan, of less loss where both are as cheap; None where no form
        is cheaper than the maps as they are, or tiles are tied to others.

    Raises:
        MaskError: if a free map has no scores.
    """
    free = all(1 not in mask.dense.shape and mask.ties is None for mask in parts)
    if not free or parts[0].shape[1] % 4 or all(mask.dense.all() for mask in parts):
        return None
    cost = cost or MultiplyAdds()
    best, known = None, (_price([m.dense for m in parts], parts, recipe, cost), float("inf"))
    for axis in (1, 0):
        maps = tuple(_lines(mask, axis) for mask in parts)
        after = sum(_loss(mask, dense) for mask, dense in zip(parts, maps, strict=True))
        rank = _price(maps, parts, recipe, cost), after
        if rank[0] < known[0] or (best is not None and rank < known):
            before = sum(_loss(mask, mask.dense) for mask in parts)
            best, known = Regrouped(maps, _NAMES[axis], before, after), rank
    return best


def _price(
    maps: Sequence[NDArray[np.bool_]],
    parts: Sequence[WeightMask],
    recipe: CompileRecipe,
    cost: Cost,
) -> float:
    masks = [replace(m, dense=dense) for m, dense in zip(parts, maps, strict=True)]
    plan = plan_weight("", masks, recipe, cost)
    return price(plan.shape, plan.pieces, cost)


def _lines(mask: WeightMask, axis: int) -> NDArray[np.bool_]:
    """The map whose 2:4 tiles are whole rows (axis 1) or columns, no more than there were."""
    worth = _scores(mask).sum(axis=axis, dtype=np.float64)
    areas = mask.grid.areas.sum(axis=axis)
    order = np.argsort(worth / areas, kind="stable")
    most = int(mask.grid.areas[~mask.dense].sum())
    taken = order[np.cumsum(areas[order]) <= most]
    dense = np.ones_like(mask.dense)
    dense[(taken, slice(None)) if axis == 1 else (slice(None), taken)] = False
    return dense


def _loss(mask: WeightMask, dense: NDArray[np.bool_]) -> float:
    return float(_scores(mask)[~dense].sum(dtype=np.float64))


def _scores(mask: WeightMask) -> NDArray[Any]:
    if mask.scores is None:
        raise MaskError(
            f"weight '{mask.name}' | has no scores to regroup its tiles by; learn it again, "
            "or leave out --regroup"
        )
    return mask.scores
