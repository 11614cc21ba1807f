"""Which 2:4 tiles to keep so that a model meets a budget of predicted time, loss or zeros.

One option of each part of the model (see `menus`) makes the whole: a multiple-choice knapsack,
solved as a mixed integer program (Kellerer, Pferschy, Pisinger, Knapsack Problems, 2004,
chapter 11) by HiGHS, whose bound on the optimum is kept. R, C: tiles along N and K.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from patch_compile.errors import MaskError, RecipeError
from patch_compile.recipe import CompileRecipe
from patch_compile.tiles.blocks import Structure
from patch_compile.tiles.cost import Cost
from patch_compile.tiles.cut import relaxed
from patch_compile.tiles.menus import Measure, Option, Weights, options, parts_of
from patch_compile.tiles.weight_mask import WeightMask

__all__ = ["Budgeted", "choose", "meet_budget"]

# Few options are solved to the end, many until the proof is this near. Nodes, not seconds,
# end a search: equal inputs must give equal masks, here and when `verify` chooses again.
_FEW = 500
_GAP = 1e-3
_NODES = 10_000


@dataclass(frozen=True, eq=False)
class Budgeted:
    """A choice that meets the budget.

    Attributes:
        masks: by name, with the tiles that were not chosen dense.
        gain: share of the dense model's predicted time that the plan of these masks saves.
        loss: sum of the scores of the 2:4 tiles.
        gap: the choice is this near to the best one of the options, by proof: relative to
            its loss, or to its gain for a budget of loss.
    """

    masks: Mapping[str, WeightMask]
    gain: float
    loss: float
    gap: float


def meet_budget(
    weights: Weights, structure: Structure, recipe: CompileRecipe, cost: Cost
) -> Budgeted:
    """Makes tiles dense until one of the recipe's budgets is met, at best.

    `speedup` and `sparsity` are met at the least loss, `max_loss` with the most time saved;
    zeros of a `sparsity` count where a plan makes time of them.

    Args:
        weights: masks with scores.
        structure: which weights meet in the graph.
        recipe: one of the three budgets, and what the planner reads.
        cost: of which all dense weights together cost 1.

    Raises:
        MaskError: if a mask has no scores.
        RecipeError: if the masks cannot be so fast, or so sparse with a gain of time.
    """
    masks = {mask.name: mask for parts in weights.values() for mask in parts}
    unscored = [mask.name for mask in masks.values() if mask.scores is None]
    if unscored:
        raise MaskError(f"weight '{unscored[0]}' | has no scores to choose by; learn it again")
    measure: Measure = "gain" if recipe.sparsity is None else "zeros"
    menu = [options(part, recipe, cost, measure) for part in parts_of(weights, structure)]
    if recipe.max_loss is not None:
        picked, gap = choose(menu, most_loss=recipe.max_loss)
    elif recipe.sparsity is not None:
        area = sum(mask.shape[0] * mask.shape[1] for mask in masks.values())
        picked, gap = choose(menu, least_zeros=_zeros(menu, recipe.sparsity, area, cost))
    else:
        picked, gap = choose(menu, least_gain=_gain(menu, recipe, cost))
    sparse = {name: tiles for option in picked for name, tiles in option.sparse.items()}
    return Budgeted(
        {name: relaxed(mask, sparse[name]) for name, mask in masks.items()},
        sum(option.gain for option in picked),
        sum(option.loss for option in picked),
        gap,
    )


def _gain(menu: Sequence[Sequence[Option]], recipe: CompileRecipe, cost: Cost) -> float:
    """The share of time that the recipe's speed-up saves, if it can be had."""
    assert recipe.times is not None
    least = 1 - 1 / recipe.times
    best = sum(max(option.gain for option in several) for several in menu)
    if best < least - 1e-9:
        raise RecipeError(
            f"speedup | is '{recipe.speedup}', and these masks allow {1 / (1 - best):.3f}x at "
            f"best, of {cost.unit}; ask for less, or learn masks with more 2:4 tiles"
        )
    return least


def _zeros(menu: Sequence[Sequence[Option]], sparsity: float, area: int, cost: Cost) -> int:
    """The zeros of a sparsity, if so many can save time."""
    wanted = round(sparsity * area)
    most = sum(max(option.zeros for option in several) for several in menu)
    if most < wanted:
        raise RecipeError(
            f"sparsity | is {sparsity:.2%}, and these masks have {most / area:.2%} where a "
            f"plan saves some of {cost.unit}; ask for less, learn masks with more 2:4 tiles, "
            "or leave out the target"
        )
    return wanted


def choose(
    menu: Sequence[Sequence[Option]],
    *,
    least_gain: float | None = None,
    least_zeros: int | None = None,
    most_loss: float | None = None,
) -> tuple[list[Option], float]:
    """Takes one option of each row: of least loss for a gain or zeros, or of most gain.

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
    elif least_zeros is not None:
        objective = losses / scale
        shares = np.array([option.zeros for option in flat]) / max(1, least_zeros)
        limit = LinearConstraint(shares[None], min(1, least_zeros) - 1e-9, np.inf)
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
