"""The decision: from a mask and a recipe to a plan. Pure; no clock, file or environment.

N: out features. K: in features.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from patch_compile.recipe import CompileRecipe
from patch_compile.tiles.cost import Cost, MultiplyAdds
from patch_compile.tiles.cover import minimum_cover
from patch_compile.tiles.geometry import TileGrid
from patch_compile.tiles.operations import price
from patch_compile.tiles.plan import Lowering, Piece, Role, Span, WeightPlan
from patch_compile.tiles.weight_mask import WeightMask, concatenate

__all__ = ["NO_BLOCK", "over_all_columns", "plan_weight", "saving", "spans_of", "strips"]

Pieces = tuple[Piece, ...]

NO_BLOCK = "neither elementwise operations alone nor an attention join it to a last product"


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
    if reason := _refusal(mask):
        return "dense", dense, reason
    if recipe.lowering == "auto" or recipe.lowering == "merge":
        return _cheapest(mask, dense, recipe.min_gain, cost)
    if recipe.lowering == "branches" or recipe.lowering == "sink-order":
        return "dense", dense, f"'{recipe.lowering}' was forced but {NO_BLOCK}"
    if recipe.lowering == "dense":
        return "dense", dense, "forced by the recipe"
    forced = _CUTS[recipe.lowering](mask)
    if forced is None:
        return "dense", dense, f"'{recipe.lowering}' was forced but does not fit the tile map"
    return recipe.lowering, forced, "forced by the recipe"


def _cheapest(
    mask: WeightMask, dense: Pieces, min_gain: float, cost: Cost
) -> tuple[Lowering, Pieces, str]:
    found = _cuts(mask)
    if not found:
        return "dense", dense, "no band, strip or cover of this tile map is wholly 2:4"
    # On equal cost the earlier, simpler form wins: dicts keep the order of _CUTS.
    prices = {name: price(mask.shape, found[name], cost) for name in found}
    best = min(found, key=prices.__getitem__)
    gain = 1 - prices[best] / price(mask.shape, dense, cost)
    if gain < min_gain:
        reason = f"best cut ('{best}') {saving(gain, cost)}, below {min_gain:.1%}"
        why = cost.refusal(mask.shape, found[best])
        return "dense", dense, f"{reason}: {why}" if why else reason
    return best, found[best], saving(gain, cost)


# A comparison asks for the cuts of every mask once a target and number of tokens.
@lru_cache(maxsize=4096)
def _cuts(mask: WeightMask) -> Mapping[Lowering, Pieces]:
    return {name: pieces for name, cut in _CUTS.items() if (pieces := cut(mask)) is not None}


def saving(gain: float, cost: Cost) -> str:
    """Says what share of the dense price a form saves."""
    return f"saves {gain:.1%} of {cost.unit}"


def over_all_columns(mask: WeightMask, cost: Cost) -> Pieces:
    """The cheapest pieces of a weight that all sum over the whole of K."""
    n, k = mask.shape
    forms = [_whole(mask), _columns(mask), (Piece("dense", ((0, n),), ((0, k),)),)]
    found = [pieces for pieces in forms if pieces is not None]
    return min(found, key=lambda pieces: price(mask.shape, pieces, cost))


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
    bands, strips = mask.dense.any(axis=1), mask.dense.any(axis=0)
    # One band or strip, whole bands or whole strips: there is nothing to combine.
    if 1 in mask.dense.shape or mask.dense[bands].all() or mask.dense[:, strips].all():
        return None
    n, k = mask.shape
    rows, columns = minimum_cover(mask.dense, mask.grid.heights * k, mask.grid.widths * n)
    return _cut(mask.grid, rows, columns) if rows.any() and columns.any() else None


def _residual(mask: WeightMask) -> Pieces | None:
    """Two 2:4 matrices whose sum is the weight: the second holds strips alone."""
    held = np.any(mask.dense, axis=0)
    if held.all() or not held.any():
        return None
    n, k = mask.shape
    strips = spans_of(mask.grid.columns, held)
    return (
        Piece("sparse24", ((0, n),), ((0, k),), "first"),
        Piece("sparse24", ((0, n),), strips, "rest"),
    )


_CUTS: dict[Lowering, Callable[[WeightMask], Pieces | None]] = {
    "whole": _whole,
    "columns": _columns,
    "reduction": _reduction,
    "cover": _cover,
    "residual": _residual,
}


def _cut(
    grid: TileGrid, dense_rows: NDArray[np.bool_], dense_columns: NDArray[np.bool_]
) -> Pieces | None:
    """Pieces of `dense rows x all K`, then the rest cut along K; None if nothing is 2:4."""
    if dense_rows.all() or dense_columns.all():
        return None
    _, k = grid.shape
    sparse_rows = spans_of(grid.rows, ~dense_rows)
    blocks: list[tuple[Role, tuple[Span, ...], tuple[Span, ...]]] = [
        ("dense", spans_of(grid.rows, dense_rows), ((0, k),)),
        ("dense", sparse_rows, spans_of(grid.columns, dense_columns)),
        ("sparse24", sparse_rows, spans_of(grid.columns, ~dense_columns)),
    ]
    return tuple(
        Piece(role, rows, columns) for role, rows, columns in blocks if rows and columns
    )


def spans_of(edges: Sequence[int], chosen: NDArray[np.bool_]) -> tuple[Span, ...]:
    """Joins the chosen intervals between edges to spans that never touch."""
    held = np.concatenate([[False], chosen, [False]])
    turns = np.flatnonzero(held[1:] != held[:-1]).tolist()
    return tuple(
        (edges[start], edges[stop])
        for start, stop in zip(turns[::2], turns[1::2], strict=True)
    )
