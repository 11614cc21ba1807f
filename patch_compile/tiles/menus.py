"""What the tiles of a model can be, priced as the planner would compile them.

Time is saved by bands of N, strips of K and whole weights, not by lone tiles, and not in
proportion; and weights that meet in the graph (q, k and v; gate, up and down) save it
together. So weights are first parted into those that are planned apart. Each part has
options, ever more of its units 2:4, the cheapest by score per area first, and each option
costs what `plan_weights` makes of it: the sum over the parts is the price of the whole plan.
R, C: tiles along N and K.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from patch_compile.recipe import CompileRecipe
from patch_compile.tiles.blocks import Structure
from patch_compile.tiles.cost import Cost
from patch_compile.tiles.groups import plan_weights
from patch_compile.tiles.operations import of_plan
from patch_compile.tiles.plan import Plan
from patch_compile.tiles.tile_map import touched
from patch_compile.tiles.weight_mask import WeightMask

__all__ = ["Measure", "Option", "Part", "Sparse", "Weights", "options", "parts_of"]

# By initializer, its masks in order along N.
Weights = Mapping[str, Sequence[WeightMask]]
Sparse = Mapping[str, NDArray[np.bool_]]
Measure = Literal["gain", "zeros"]

# Options of one family of units at most: more units are taken several at a time.
_STEPS = 32
# The same of a weight whose options are mixed with those of others, and mixtures at most.
_FEW_STEPS = 16
_MIXTURES = 16
# Parts of no more weights also try every one of them wholly 2:4 or not at all.
_FEW_WEIGHTS = 4


@dataclass(frozen=True, eq=False)
class Option:
    """Some tiles of some weights that stay 2:4.

    Attributes:
        gain: price that the planner saves with them.
        loss: sum of their scores.
        zeros: weights that go.
        sparse: by mask, bool (R, C).
    """

    gain: float
    loss: float
    zeros: int
    sparse: Sparse


@dataclass(frozen=True)
class Part:
    """Weights that are planned together, and how they meet."""

    weights: Weights
    structure: Structure

    @property
    def masks(self) -> list[WeightMask]:
        """All of them, in graph order."""
        return [mask for several in self.weights.values() for mask in several]


def parts_of(weights: Weights, structure: Structure) -> list[Part]:
    """Parts weights such that no tie, block or shared X reaches from one part to another."""
    met = [block.weights for block in structure.blocks] + list(structure.siblings)
    parts: list[tuple[set[Any], dict[str, Sequence[WeightMask]]]] = []
    for name, several in weights.items():
        keys: set[Any] = {index for index, group in enumerate(met) if name in group}
        keys |= {
            f"tie {number}"
            for mask in several
            if mask.ties is not None
            for number in np.unique(mask.ties)
        }
        joined = [part for part in parts if part[0] & keys]
        parts = [part for part in parts if not part[0] & keys]
        inside = {n: masks for _, part in joined for n, masks in part.items()}
        parts.append((keys.union(*(k for k, _ in joined)), inside | {name: several}))
    return [Part(inside, _within(structure, inside)) for _, inside in parts]


def _within(structure: Structure, weights: Weights) -> Structure:
    return Structure(
        tuple(b for b in structure.blocks if any(name in weights for name in b.weights)),
        tuple(s for s in structure.siblings if any(name in weights for name in s)),
    )


def options(
    part: Part, recipe: CompileRecipe, cost: Cost, measure: Measure, steps: int = _STEPS
) -> list[Option]:
    """The options of one part, all dense first, those alone that no other is better than.

    Args:
        part: weights with scores.
        recipe: what the planner reads.
        cost: of products and moves.
        measure: what is bought by a loss.
        steps: in which the units of one family are taken.
    """
    pricer = _Pricer(part, recipe, cost)
    found = [pricer.option(sparse) for sparse in _families(part, steps)]
    if len(part.weights) > 1 and all(mask.ties is None for mask in part.masks):
        menus = [
            options(Part({name: masks}, Structure()), recipe, cost, measure, _FEW_STEPS)
            for name, masks in part.weights.items()
        ]
        found += [pricer.option(sparse) for sparse in _mixtures(menus, measure)]
        found += [pricer.option(sparse) for sparse in _corners(part)]
    return _undominated(found, measure)


@dataclass(frozen=True)
class _Pricer:
    part: Part
    recipe: CompileRecipe
    cost: Cost

    def option(self, sparse: Sparse) -> Option:
        """Prices a tile map; tiles that no 2:4 piece holds go dense: they lose for nothing."""
        weights = {
            name: [_with(mask, sparse[mask.name]) for mask in masks]
            for name, masks in self.part.weights.items()
        }
        plan = plan_weights(weights, self.part.structure, self.recipe, self.cost)
        kept = self._kept(plan, sparse)
        dense = sum(self.cost.product(*w.shape, sparse24=False) for w in plan.weights)
        masks = self.part.masks
        return Option(
            dense - of_plan(plan).price(self.cost),
            sum(float(_scores(m)[kept[m.name]].sum(dtype=np.float64)) for m in masks),
            sum(int(m.grid.areas[kept[m.name]].sum()) // 2 for m in masks),
            kept,
        )

    def _kept(self, plan: Plan, sparse: Sparse) -> Sparse:
        computed: dict[str, NDArray[np.bool_]] = {}
        for weight in plan.weights:
            start = 0
            for mask in self.part.weights[weight.weight]:
                met = touched(mask.grid, weight.pieces, start)
                computed[mask.name] = sparse[mask.name] & met
                start += mask.shape[0]
        ties = {mask.name: mask.ties for mask in self.part.masks if mask.ties is not None}
        if not ties:
            return computed
        numbers = np.concatenate([tiles[computed[name]] for name, tiles in ties.items()])
        whole = {n: sparse[n] & np.isin(tiles, numbers) for n, tiles in ties.items()}
        return computed | whole


def _with(mask: WeightMask, sparse: NDArray[np.bool_]) -> WeightMask:
    """The mask's tile map alone: prices read no keep bits."""
    return replace(mask, dense=~sparse, scores=None, ties=None)


def _families(part: Part, steps: int) -> Iterator[Sparse]:
    """Tile maps that grow, from none to all, by bands and ties, then by strips and ties."""
    masks = part.masks
    none = {mask.name: np.zeros_like(mask.dense) for mask in masks}
    yield none
    tied = _tie_units([mask for mask in masks if mask.ties is not None])
    free = [mask for mask in masks if mask.ties is None]
    yield from _growing([*tied, *_line_units(free, 1)], masks, steps)
    # A strip of a fused weight would have to be 2:4 in all its masks.
    alone = [several[0] for several in part.weights.values() if len(several) == 1]
    strips = [mask for mask in alone if mask.ties is None and mask.dense.shape[1] > 1]
    if strips:
        yield from _growing([*tied, *_line_units(strips, 0)], masks, steps)


def _growing(
    units: Sequence[Sparse], masks: Sequence[WeightMask], steps: int
) -> Iterator[Sparse]:
    """Tile maps of ever more units, the cheapest by score per area first."""
    named = {mask.name: mask for mask in masks}
    ranked = sorted(units, key=lambda unit: _worth(unit, named))
    sparse = {mask.name: np.zeros_like(mask.dense) for mask in masks}
    ends = np.unique(np.linspace(0, len(units), min(len(units), steps) + 1).astype(int))
    for start, stop in pairwise(ends):
        sparse = dict(sparse)
        for name, tiles in (pair for unit in ranked[start:stop] for pair in unit.items()):
            sparse[name] = sparse[name] | tiles
        yield sparse


def _mixtures(menus: Sequence[Sequence[Option]], measure: Measure) -> list[Sparse]:
    """The best sums of one option of each menu, as if the weights were planned apart."""
    found = [Option(0.0, 0.0, 0, {})]
    for menu in menus:
        sums = [
            Option(
                a.gain + b.gain, a.loss + b.loss, a.zeros + b.zeros, {**a.sparse, **b.sparse}
            )
            for a in found
            for b in menu
        ]
        best = _undominated(sums, measure)
        places = np.linspace(0, len(best) - 1, min(len(best), _MIXTURES)).astype(int)
        found = [best[place] for place in places]
    return [option.sparse for option in found]


def _corners(part: Part) -> Iterator[Sparse]:
    """Every weight 2:4 wherever it can be, or dense: what merges need."""
    if len(part.weights) > _FEW_WEIGHTS:
        return
    for taken in product((False, True), repeat=len(part.weights)):
        yield {
            mask.name: ~mask.dense if take else np.zeros_like(mask.dense)
            for take, masks in zip(taken, part.weights.values(), strict=True)
            for mask in masks
        }


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
    """Tiles that share a number, where all of them can be 2:4."""
    ties = {mask.name: mask.ties for mask in masks if mask.ties is not None}
    numbers = [number for tiles in ties.values() for number in np.unique(tiles)]
    units: list[Sparse] = []
    for number in dict.fromkeys(numbers):
        unit = {name: tiles == number for name, tiles in ties.items()}
        if not any((unit[mask.name] & mask.dense).any() for mask in masks):
            units.append({name: tiles for name, tiles in unit.items() if tiles.any()})
    return units


def _worth(unit: Sparse, masks: Mapping[str, WeightMask]) -> float:
    area = sum(int(masks[name].grid.areas[tiles].sum()) for name, tiles in unit.items())
    return sum(float(_scores(masks[name])[t].sum()) for name, t in unit.items()) / area


def _scores(mask: WeightMask) -> NDArray[Any]:
    assert mask.scores is not None
    return mask.scores


def _undominated(found: Sequence[Option], measure: Measure) -> list[Option]:
    """Leaves out options that lose no less than another and buy no more."""
    kept: list[Option] = []
    for option in sorted(found, key=lambda o: (o.loss, -getattr(o, measure))):
        if not kept or getattr(option, measure) > getattr(kept[-1], measure):
            kept.append(option)
    return kept
