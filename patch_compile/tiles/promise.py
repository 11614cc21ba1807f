"""Masks that keep a promise of predicted time, and what a tile is worth to it.

A weight saves time by bands of N, by strips of K, or whole, and not in proportion: what
chooses tiles one by one needs a gain for each that stands for its share. R, C: tiles along N
and K.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from patch_compile.errors import RecipeError
from patch_compile.recipe import CompileRecipe
from patch_compile.tiles.blocks import Structure
from patch_compile.tiles.cost import Cost
from patch_compile.tiles.geometry import TileGrid
from patch_compile.tiles.masks import Masks
from patch_compile.tiles.operations import price
from patch_compile.tiles.plan import Piece
from patch_compile.tiles.planner import strips
from patch_compile.tiles.time_budget import Budgeted, meet_budget
from patch_compile.tiles.time_cost import cost_of
from patch_compile.tiles.weight_mask import WeightMask

__all__ = ["Promise", "cut_in_time"]


@dataclass(frozen=True)
class Promise:
    """So many times as fast as dense, by the planner's prices.

    Attributes:
        recipe: with a target and a `speedup`.
        cost: of which all dense weights together cost 1.
    """

    recipe: CompileRecipe
    cost: Cost

    @classmethod
    def of(cls, recipe: CompileRecipe, shapes: Iterable[tuple[int, int]]) -> "Promise":
        """Prices the promise for weights of these shapes (N, K).

        Raises:
            RecipeError: if the target is unknown.
        """
        cost = cost_of(recipe, shapes)
        assert cost is not None
        return cls(recipe, cost)

    @property
    def least(self) -> float:
        """The share of the dense weights' time that is to be saved."""
        assert self.recipe.times is not None
        return 1 - 1 / self.recipe.times

    def check(self, grids: Iterable[TileGrid]) -> None:
        """Refuses, from shapes alone, what no choice of tiles could keep.

        Raises:
            RecipeError: if tiles are neither bands, columns nor whole weights, or the weights
                would not be so fast if all of them were 2:4.
        """
        best = 0.0
        for grid in grids:
            if min(grid.tiles) > 1:
                raise RecipeError(
                    f"tile | cuts a weight of {grid.shape} into {grid.tiles[0]} x "
                    f"{grid.tiles[1]} tiles, and a budget of time needs to know what each "
                    "saves; expected band:R, column:C or weight"
                )
            dense, sparse = (self.cost.product(*grid.shape, sparse24=s) for s in (False, True))
            best += max(0.0, dense - sparse)
        if best < self.least - 1e-9:
            raise RecipeError(
                f"budget | is {self.recipe.speedup} by {self.cost.unit}, and with all weights "
                f"2:4 it is {1 / (1 - best):.3f}x at {', '.join(self.recipe.tokens)} tokens; "
                "ask for less, or for more tokens"
            )

    def keep(self, masks: Masks) -> Budgeted:
        """Makes tiles dense, at the least loss by score, while the promise is kept.

        Raises:
            MaskError: if a weight has no scores.
            RecipeError: if the masks cannot keep it.
        """
        weights = {mask.name: (mask,) for mask in masks.weights.values()}
        # No graph is known yet: what weights would save together comes on top.
        return meet_budget(weights, Structure(), self.recipe, self.cost)

    def gains(self, masks: Masks) -> dict[str, NDArray[np.float64]]:
        """Returns what each tile saves by being 2:4, (R, C), shares of the dense time.

        The time that a weight saves where `keep` cuts it, or where it keeps nothing, the time
        that it saves whole, is shared out by area: at that cut the gains add up to what is
        promised. A weight that saves nothing gains nothing.

        Args:
            masks: all tiles 2:4, with scores.
        """
        kept = self.keep(masks).masks
        return {name: self._shared(mask, kept[name]) for name, mask in masks.weights.items()}

    def _shared(self, whole: WeightMask, kept: WeightMask) -> NDArray[np.float64]:
        cut = whole if kept.dense.all() else kept
        area = int(cut.grid.areas[~cut.dense].sum())
        shared: NDArray[np.float64] = self._saved(cut) * (cut.grid.areas / max(1, area))
        return shared

    def _saved(self, mask: WeightMask) -> float:
        n, k = mask.shape
        dense = price(mask.shape, (Piece("dense", ((0, n),), ((0, k),)),), self.cost)
        saved = dense - min(price(mask.shape, cut, self.cost) for cut in strips(mask))
        # What saves less the planner leaves dense.
        return saved if saved >= self.recipe.min_gain * dense else 0.0


def cut_in_time(masks: Masks, recipe: CompileRecipe) -> Masks:
    """Makes tiles dense until the masks are just as fast as the recipe's `speedup`.

    Args:
        masks: with scores; their 2:4 tiles are the candidates.
        recipe: with a target and a `speedup`.

    Returns:
        The masks; `made_by` says what is predicted.

    Raises:
        MaskError: if a weight has no scores.
        RecipeError: if the target is unknown, or the masks cannot be so fast.
    """
    promise = Promise.of(recipe, [mask.shape for mask in masks.weights.values()])
    found = promise.keep(masks)
    facts: Mapping[str, object] = {
        "speedup": 1 / (1 - found.gain),
        "asked": recipe.speedup,
        "target": recipe.target,
        "tokens": list(recipe.tokens),
        "gap": found.gap,
    }
    return Masks(dict(found.masks), {**masks.made_by, "budget": facts})
