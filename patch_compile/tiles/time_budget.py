"""Which 2:4 tiles to keep so that a model meets a budget of predicted time or of loss.

Time is saved by bands of N, strips of K and whole weights, not by lone tiles, and not in
proportion: so each weight (or several, whose tiles are tied) has options, ever more of its
units 2:4, the cheapest by score per area first, each priced by the planner's own rules. One
option of each makes the model: a multiple-choice knapsack, solved as a mixed integer program
(Kellerer, Pferschy, Pisinger, Knapsack Problems, 2004, chapter 11) by HiGHS, whose bound on
the optimum is kept. R, C: tiles along N and K.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patch_compile.errors import MaskError, RecipeError
from patch_compile.recipe import CompileRecipe
from patch_compile.tiles.cost import Cost
from patch_compile.tiles.cut import relaxed
from patch_compile.tiles.operations import price
from patch_compile.tiles.plan import Piece
from patch_compile.tiles.planner import strips
from patch_compile.tiles.weight_mask import WeightMask, concatenate

__all__ = ["Budgeted", "Option", "choose", "meet_budget", "options"]

# By initializer, its masks in order along N.
Weights = Mapping[str, Sequence[WeightMask]]
Sparse = Mapping[str, NDArray[np.bool_]]

# Options of one group of weights at most: more units are taken several at a time.
_STEPS = 32
# Few options are solved to the end, many until the proof is this near. Nodes, not seconds,
# end a search: equal inputs must give equal masks, here and when `verify` chooses again.
_FEW = 500
_GAP = 1e-3
_NODES = 10_000


@dataclass(frozen=True, eq=False)
class Option:
    """Some tiles of some weights that stay 2:4.

    Attributes:
        gain: price that the planner saves with them.
        loss: sum of their scores.
        sparse: by mask, bool (R, C).
    """

    gain: float
    loss: float
    sparse: Sparse


@dataclass(frozen=True, eq=False)
class Budgeted:
    """A choice that meets the budget.

    Attributes:
        masks: by name, with the tiles that were not chosen dense.
        gain: share of the dense model's predicted time that is saved.
        loss: sum of the scores of the 2:4 tiles.
        gap: the choice is this near to the best one of the options, by proof: relative to
            its loss, or to its gain for a budget of loss.
    """

    masks: Mapping[str, WeightMask]
    gain: float
    loss: float
    gap: float


def meet_budget(weights: Weights, recipe: CompileRecipe, cost: Cost) -> Budgeted:
    """Makes tiles dense until the recipe's `speedup` or `max_loss` is met, at best.

    Args:
        weights: masks with scores.
        recipe: one of the two budgets, and `min_gain`.
        cost: of which all dense weights together cost 1.

    Raises:
        MaskError: if a mask has no scores.
        RecipeError: if the masks cannot be so fast.
    """
    masks = {mask.name: mask for parts in weights.values() for mask in parts}
    unscored = [mask.name for mask in masks.values() if mask.scores is None]
    if unscored:
        raise MaskError(f"weight '{unscored[0]}' | has no scores to choose by; learn it again")
    menu = [options(group, recipe.min_gain, cost) for group in _tied(weights)]
    if recipe.times is None:
        assert recipe.max_loss is not None
        picked, gap = choose(menu, most_loss=recipe.max_loss)
    else:
        least = 1 - 1 / recipe.times
        best = sum(max(option.gain for option in several) for several in menu)
        if best < least - 1e-9:
            raise RecipeError(
                f"speedup | is '{recipe.speedup}', and these masks allow "
                f"{1 / (1 - best):.3f}x at best, of {cost.unit}; ask for less, or learn masks "
                "with more 2:4 tiles"
            )
        picked, gap = choose(menu, least_gain=least)
    sparse = {name: tiles for option in picked for name, tiles in option.sparse.items()}
    return Budgeted(
        {name: relaxed(mask, sparse[name]) for name, mask in masks.items()},
        sum(option.gain for option in picked),
        sum(option.loss for option in picked),
        gap,
    )


def choose(
    menu: Sequence[Sequence[Option]],
    *,
    least_gain: float | None = None,
    most_loss: float | None = None,
) -> tuple[list[Option], float]:
    """Takes one option of each row: of least loss for a gain, or of most gain for a loss.

    Returns:
        The options, and the proven relative distance from the best choice.
    """
    # Imported here, against the house rule: half a second that only budgets need.
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    flat = [option for several in menu for option in several]
    gains = np.array([option.gain for option in flat])
    losses = np.array([option.loss for option in flat])
    owners = np.repeat(np.arange(len(menu)), [len(several) for several in menu])
    one_each = csr_array(
        (np.ones(len(flat)), (owners, np.arange(len(flat)))), shape=(len(menu), len(flat))
    )
    # Scaled, for a solver's tolerances are absolute; a hair of slack for its rounding.
    scale = max(float(np.abs(losses).max()), 1e-30)
    if least_gain is not None:
        objective = losses / scale
        limit = LinearConstraint(gains[None], least_gain - 1e-9, np.inf)
    else:
        assert most_loss is not None
        objective = -gains
        limit = LinearConstraint(losses[None] / scale, -np.inf, most_loss / scale + 1e-12)
    found = milp(
        objective,
        integrality=np.ones(len(flat)),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(one_each, 1, 1), limit],
        options={
            "node_limit": _NODES,
            "mip_rel_gap": 0.0 if len(flat) <= _FEW else _GAP,
        },
    )
    if found.x is None:
        raise RecipeError(
            f"budget | has no solution among {len(flat)} options: {found.message}; "
            "ask for less"
        )
    picked = [option for option, taken in zip(flat, found.x > 0.5, strict=True) if taken]
    return picked, float(found.mip_gap or 0.0)


def options(weights: Weights, min_gain: float, cost: Cost) -> list[Option]:
    """The options of weights that are chosen together, all dense first, best ones only.

    Args:
        weights: one, or several whose tiles are tied.
        min_gain: the least share of its cost that a cut of a weight must save.
        cost: of products and moves.
    """
    masks = [mask for parts in weights.values() for mask in parts]
    found = [_option(weights, {m.name: np.zeros_like(m.dense) for m in masks}, min_gain, cost)]
    for units in _families(masks):
        sparse = {mask.name: np.zeros_like(mask.dense) for mask in masks}
        ends = np.unique(np.linspace(0, len(units), min(len(units), _STEPS) + 1).astype(int))
        for start, stop in pairwise(ends):
            for unit in units[start:stop]:
                sparse = {
                    n: tiles | unit[n] if n in unit else tiles for n, tiles in sparse.items()
                }
            found.append(_option(weights, sparse, min_gain, cost))
    return _undominated(found)


def _option(weights: Weights, sparse: Sparse, min_gain: float, cost: Cost) -> Option:
    """Tiles of weights whose cut does not pay go dense: they would lose for nothing."""
    gain, loss, kept = 0.0, 0.0, dict(sparse)
    for parts in weights.values():
        saved = _saved([_with(mask, sparse[mask.name]) for mask in parts], min_gain, cost)
        gain += saved
        for mask in parts:
            if saved <= 0 and mask.ties is None:
                kept[mask.name] = np.zeros_like(mask.dense)
            loss += float(_scores(mask)[kept[mask.name]].sum(dtype=np.float64))
    return Option(gain, loss, kept)


def _saved(parts: Sequence[WeightMask], min_gain: float, cost: Cost) -> float:
    mask = concatenate(parts)
    n, k = mask.shape
    dense = price(mask.shape, (Piece("dense", ((0, n),), ((0, k),)),), cost)
    best = min((price(mask.shape, cut, cost) for cut in strips(mask)), default=dense)
    return dense - best if 1 - best / dense >= min_gain else 0.0


def _with(mask: WeightMask, sparse: NDArray[np.bool_]) -> WeightMask:
    """The mask's tile map alone: prices read no keep bits."""
    return WeightMask(mask.name, mask.grid, ~sparse, mask.bits, geometry=mask.geometry)


def _families(masks: Sequence[WeightMask]) -> list[list[Sparse]]:
    """Lists of units, each a set of tiles, from the cheapest by score per area."""
    if any(mask.ties is not None for mask in masks):
        families = [_tie_units(masks)]
    else:
        families = [_line_units(masks, 1)]
        if len(masks) == 1 and masks[0].dense.shape[0] > 1 and masks[0].dense.shape[1] > 1:
            families.append(_line_units(masks, 0))
        elif len(masks) == 1 and masks[0].dense.shape[0] == 1:
            families = [_line_units(masks, 0)]
    named = {mask.name: mask for mask in masks}
    return [sorted(units, key=lambda unit: _worth(unit, named)) for units in families]


def _line_units(masks: Sequence[WeightMask], axis: int) -> list[Sparse]:
    """Rows of tiles (axis 1) or columns (axis 0) that are wholly 2:4."""
    units: list[Sparse] = []
    for mask in masks:
        for line in np.flatnonzero(~mask.dense.any(axis=axis)):
            tiles = np.zeros_like(mask.dense)
            tiles[(line, slice(None)) if axis == 1 else (slice(None), line)] = True
            units.append({mask.name: tiles})
    return units


def _tie_units(masks: Sequence[WeightMask]) -> list[Sparse]:
    """Tiles that share a number; those of weights without ties, all at once."""
    numbers = {
        m.name: m.ties if m.ties is not None else np.full(m.dense.shape, -1) for m in masks
    }
    every = np.unique(np.concatenate([tiles.ravel() for tiles in numbers.values()]))
    units: list[Sparse] = []
    for number in every:
        unit = {mask.name: numbers[mask.name] == number for mask in masks}
        if all(
            not (tiles & m.dense).any() for tiles, m in zip(unit.values(), masks, strict=True)
        ):
            units.append({name: tiles for name, tiles in unit.items() if tiles.any()})
    return units


def _worth(unit: Sparse, masks: Mapping[str, WeightMask]) -> float:
    area = sum(int(masks[name].grid.areas[tiles].sum()) for name, tiles in unit.items())
    return sum(float(_scores(masks[name])[t].sum()) for name, t in unit.items()) / area


def _scores(mask: WeightMask) -> NDArray[Any]:
    assert mask.scores is not None
    return mask.scores


def _undominated(found: Sequence[Option]) -> list[Option]:
    """Leaves out options that lose no less than another and gain no more."""
    kept: list[Option] = []
    for option in sorted(found, key=lambda option: (option.loss, -option.gain)):
        if not kept or option.gain > kept[-1].gain:
            kept.append(option)
    return kept


def _tied(weights: Weights) -> list[Weights]:
    """Splits weights into groups that share no tie."""
    groups: list[tuple[set[int], dict[str, Sequence[WeightMask]]]] = []
    for name, parts in weights.items():
        ties = {
            int(n) for mask in parts if mask.ties is not None for n in np.unique(mask.ties)
        }
        met = [group for group in groups if group[0] & ties]
        groups = [group for group in groups if not group[0] & ties]
        joined = {key: value for _, group in met for key, value in group.items()}
        groups.append((ties.union(*(numbers for numbers, _ in met)), joined | {name: parts}))
    return [group for _, group in groups]
