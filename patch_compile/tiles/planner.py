"""The decision: from a mask and a recipe to a plan. Pure; no clock, file or environment.

N: out features. K: in features.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from patch_compile.recipe import CompileRecipe
from patch_compile.tiles.cost import Cost, MultiplyAdds, price
from patch_compile.tiles.cover import minimum_cover
from patch_compile.tiles.geometry import TileGrid
from patch_compile.tiles.plan import Lowering, Piece, Role, Span, WeightPlan
from patch_compile.tiles.weight_mask import WeightMask, concatenate

__all__ = ["plan_weight", "strips"]

Pieces = tuple[Piece, ...]


def plan_weight(
    weight: str,
    masks: Sequence[WeightMask],
    recipe: CompileRecipe,
    cost: Cost | None = None,
) -> WeightPlan:
    """Returns the cheapest lowering of one initializer, or the one the recipe forces.

    Args:
        weight: the initializer's name.
        masks: its mask; several, in order along N, if the initializer is fused.
        recipe: `lowering` forces one form; `min_gain` is the least share of the cost that a
            cut must save.
        cost: what is saved; None counts multiply-adds.
    """
    mask = concatenate(masks)
    lowering, pieces, reason = _decide(mask, recipe, cost or MultiplyAdds())
    names = tuple(mask.name for mask in masks)
    return WeightPlan(weight, names, mask.shape, lowering, pieces, reason)


def _decide(
    mask: WeightMask, recipe: CompileRecipe, cost: Cost
) -> tuple[Lowering, Pieces, str]:
    n, k = mask.shape
    dense = (Piece("dense", ((0, n),), ((0, k),)),)
    if refusal := _refusal(mask):
        return "dense", dense, refusal
    if recipe.lowering == "auto":
        return _cheapest(mask, dense, recipe.min_gain, cost)
    if recipe.lowering == "dense":
        return "dense", dense, "forced by the recipe"
    forced = _CUTS[recipe.lowering](mask)
    if forced is None:
        return "dense", dense, f"'{recipe.lowering}' was forced but does not fit the tile map"
    return recipe.lowering, forced, "forced by the recipe"


def _cheapest(
    mask: WeightMask, dense: Pieces, min_gain: float, cost: Cost
) -> tuple[Lowering, Pieces, str]:
    found: dict[Lowering, Pieces] = {
        name: pieces for name, cut in _CUTS.items() if (pieces := cut(mask)) is not None
    }
    if not found:
        return "dense", dense, "no band, strip or cover of this tile map is wholly 2:4"
    # On equal cost the earlier, simpler form wins: dicts keep the order of _CUTS.
    best = min(found, key=lambda name: price(mask.shape, found[name], cost))
    gain = 1 - price(mask.shape, found[best], cost) / price(mask.shape, dense, cost)
    saved = f"saves {gain:.1%} of {cost.unit}"
    if gain < min_gain:
        why = cost.refusal(mask.shape, found[best])
        reason = f"best cut ('{best}') {saved}, below {min_gain:.1%}"
        return "dense", dense, f"{reason}: {why}" if why else reason
    return best, found[best], saved


def strips(mask: WeightMask) -> list[Pieces]:
    """The cuts of a tile map that need no cover: whole, by bands of N, by strips of K."""
    if mask.shape[1] % 4:
        return []
    cuts = (_whole(mask), _columns(mask), _reduction(mask))
    return [pieces for pieces in cuts if pieces is not None]


def _refusal(mask: WeightMask) -> str | None:
    if mask.dense.all():
        return "every tile is dense"
    if mask.shape[1] % 4:
        return f"in features {mask.shape[1]} are not a multiple of 4: no 2:4 kernel takes it"
    return None


def _whole(mask: WeightMask) -> Pieces | None:
    n, k = mask.shape
    return None if mask.dense.any() else (Piece("sparse24", ((0, n),), ((0, k),)),)


def _columns(mask: WeightMask) -> Pieces | None:
    held = np.any(mask.dense, axis=1)
    none = np.zeros(mask.dense.shape[1], np.bool_)
    return _cut(mask.grid, held, none) if held.any() else None


def _reduction(mask: WeightMask) -> Pieces | None:
    held = np.any(mask.dense, axis=0)
    none = np.zeros(mask.dense.shape[0], np.bool_)
    return _cut(mask.grid, none, held) if held.any() else None


def _cover(mask: WeightMask) -> Pieces | None:
    if 1 in mask.dense.shape:
        return None  # with one band or one strip there is nothing to combine
    n, k = mask.shape
    rows, columns = minimum_cover(mask.dense, mask.grid.heights * k, mask.grid.widths * n)
    return _cut(mask.grid, rows, columns) if rows.any() and columns.any() else None


_CUTS: dict[Lowering, Callable[[WeightMask], Pieces | None]] = {
    "whole": _whole,
    "columns": _columns,
    "reduction": _reduction,
    "cover": _cover,
}


def _cut(
    grid: TileGrid, dense_rows: NDArray[np.bool_], dense_columns: NDArray[np.bool_]
) -> Pieces | None:
    """Pieces of `dense rows x all K`, then the rest cut along K; None if nothing is 2:4."""
    if dense_rows.all() or dense_columns.all():
        return None
    _, k = grid.shape
    sparse_rows = _spans(grid.rows, ~dense_rows)
    blocks: list[tuple[Role, tuple[Span, ...], tuple[Span, ...]]] = [
        ("dense", _spans(grid.rows, dense_rows), ((0, k),)),
        ("dense", sparse_rows, _spans(grid.columns, dense_columns)),
        ("sparse24", sparse_rows, _spans(grid.columns, ~dense_columns)),
    ]
    return tuple(
        Piece(role, rows, columns) for role, rows, columns in blocks if rows and columns
    )


def _spans(edges: tuple[int, ...], chosen: NDArray[np.bool_]) -> tuple[Span, ...]:
    spans: list[Span] = []
    for index in np.flatnonzero(chosen):
        start, stop = edges[index], edges[index + 1]
        if spans and spans[-1][1] == start:
            spans[-1] = (spans[-1][0], stop)
        else:
            spans.append((start, stop))
    return tuple(spans)
