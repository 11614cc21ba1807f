"""Where learning starts: a gate for every weight, from one-shot statistics.

N: out features. K: in features. R, C: tiles along N and K.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import Parameter

from patch_compile.io.digests import digests
from patch_compile.learn.calibrate import Statistics
from patch_compile.learn.layout import Layout, untied
from patch_compile.learn.linears import Linear
from patch_compile.learn.oneshot import evidence_of, scored_mask
from patch_compile.learn.scores import (
    COSTS,
    FREE_SALIENCIES,
    SALIENCIES,
    Evidence,
    needs_fisher,
)
from patch_compile.learn.training.gate import Gate, Moment, Tied
from patch_compile.learn.training.noise import Draw
from patch_compile.learn.training.patterns import Pattern
from patch_compile.recipe import LearnRecipe
from patch_compile.tiles.cut import cut_masks
from patch_compile.tiles.geometry import TileGrid
from patch_compile.tiles.masks import Masks
from patch_compile.tiles.promise import Promise, cut_in_time
from patch_compile.tiles.weight_mask import WeightMask

__all__ = ["free_gates", "restarted_gates", "tiled_gates"]

# PATCH starts tile logits at N(0, 0.014), and LEAP pushes weights by three deviations to the
# side that Wanda would put them on.
_DEVIATION = 0.014
_STRENGTH = 3.0


def tiled_gates(
    linears: Mapping[str, Linear],
    statistics: Statistics,
    recipe: LearnRecipe,
    pattern: Pattern,
    moment: Moment,
    layouts: Mapping[str, Layout] | None = None,
) -> tuple[dict[str, Gate], Masks]:
    """Builds the gates of a method that has tiles.

    Where tiles are set, weights without a sparse tile get no gate: nothing is learned there.
    Where they are learned, those of a tie share a logit.

    Args:
        linears: by the names of their weights.
        statistics: used up, weight by weight.
        recipe: what was asked.
        pattern: kind of pattern.
        moment: that the gates share.
        layouts: of the weights; None cuts them by the recipe's `tile` alone.

    Returns:
        The gates, and the one-shot masks they start from, all tiles 2:4 and scored.
    """
    layouts = untied(linears, recipe.tile) if layouts is None else layouts
    stored: dict[str, Tensor] = {}
    masks = []
    for name, linear in linears.items():
        evidence = evidence_of(linear, statistics)
        saliency = SALIENCIES[recipe.saliency](evidence)
        stored[name] = pattern.start(torch.from_numpy(saliency), _generator(recipe, name))
        keep = pattern.hard(stored[name]).numpy()
        scores = _scores(evidence, saliency, keep, layouts[name].grid, recipe)
        known = digests(evidence.weight)
        masks.append(scored_mask(linear, layouts[name], keep, scores, known))
    prior = Masks({mask.name: mask for mask in masks})
    return _gates(prior, stored, recipe, pattern, moment), prior


def restarted_gates(
    prior: Masks, recipe: LearnRecipe, pattern: Pattern, moment: Moment
) -> dict[str, Gate]:
    """Builds the same gates from the masks they started from, without statistics.

    Logits and scores are not those of the start: a checkpoint brings its own.

    Args:
        prior: what `tiled_gates` returned.
        recipe: of the same run.
        pattern: of its method.
        moment: that the gates share.
    """
    stored = {
        name: pattern.start(torch.from_numpy(mask.keep()).float(), _generator(recipe, name))
        for name, mask in prior.weights.items()
    }
    return _gates(prior, stored, recipe, pattern, moment)


def _gates(
    prior: Masks,
    stored: Mapping[str, Tensor],
    recipe: LearnRecipe,
    pattern: Pattern,
    moment: Moment,
) -> dict[str, Gate]:
    tiles = _learned(prior, recipe) if recipe.ranking == "learned" else _set(prior, recipe)
    return {
        name: Gate(
            name, prior.weights[name].grid, pattern, moment, stored=stored[name], **given
        )
        for name, given in tiles.items()
    }


def _scores(
    evidence: Evidence,
    saliency: NDArray[np.float32],
    keep: NDArray[np.bool_],
    grid: TileGrid,
    recipe: LearnRecipe,
) -> NDArray[np.float64]:
    """Returns what going 2:4 costs each tile, (R, C); zeros where nobody asks."""
    if recipe.ranking == "learned" and not needs_fisher(recipe):
        return np.zeros(grid.tiles)
    cost = COSTS["fisher" if needs_fisher(recipe) else "error"](evidence, saliency)
    return grid.total(np.where(keep, np.float32(0), cost))


def _set(prior: Masks, recipe: LearnRecipe) -> dict[str, dict[str, Any]]:
    """Sets the tiles once, at the sparsity or the time that learning aims at."""
    promise = recipe.promise
    chosen = cut_masks(prior, recipe.aim) if promise is None else cut_in_time(prior, promise)
    return {
        name: {"tiles": _tensor(_scores_of(mask)), "dense": torch.from_numpy(mask.dense)}
        for name, mask in chosen.weights.items()
        if not mask.dense.all()
    }


def _learned(prior: Masks, recipe: LearnRecipe) -> dict[str, dict[str, Any]]:
    """Starts tile logits, N(0, 0.014) or by cost, 0 at the budget's own threshold."""
    budget = _budget(prior, recipe)
    masks = [prior.weights[name] for name in budget.gains]
    if recipe.tile_start == "random":
        start = _random(masks, recipe)
    else:
        start = _by_cost(masks, budget)
    shared: dict[str, Parameter] = {}
    # Zeros are counted by the gates themselves.
    timed = recipe.promise is not None
    return {
        mask.name: {
            "tiles": logits if mask.ties is None else _tied(mask, logits, shared),
            "gains": _tensor(budget.gains[mask.name]) if timed else None,
        }
        for mask, logits in zip(masks, start, strict=True)
    }


@dataclass(frozen=True, eq=False)
class _Budget:
    """What tiles count for while they are learned.

    Attributes:
        gains: of every weight that can gain, float64 (R, C): zeros, or shares of the time.
        share: of all gains that is wanted.
    """

    gains: Mapping[str, NDArray[np.float64]]
    share: float


def _budget(prior: Masks, recipe: LearnRecipe) -> _Budget:
    if recipe.promise is None:
        zeros = {
            name: (mask.grid.areas // 2).astype(np.float64)
            for name, mask in prior.weights.items()
        }
        return _Budget(zeros, 2 * recipe.aim)
    shapes = [mask.shape for mask in prior.weights.values()]
    promise = Promise.of(recipe.promise, shapes)
    gains = promise.gains(prior)
    whole = sum(float(gain.sum()) for gain in gains.values())
    return _Budget(_able(prior, gains), promise.least / max(whole, promise.least))


def _able(
    prior: Masks, gains: Mapping[str, NDArray[np.float64]]
) -> dict[str, NDArray[np.float64]]:
    """Leaves out weights that gain nothing, and are tied to none that does."""
    masks = {name: mask for name, mask in prior.weights.items() if gains[name].any()}
    tied = {
        int(number) for m in masks.values() if m.ties is not None for number in m.ties.flat
    }
    return {
        name: gains[name]
        for name, mask in prior.weights.items()
        if name in masks or (mask.ties is not None and int(mask.ties.flat[0]) in tied)
    }


def _random(masks: Sequence[WeightMask], recipe: LearnRecipe) -> list[Tensor]:
    logits = []
    for name, mask in ((mask.name, mask) for mask in masks):
        if mask.ties is None:
            logits.append(_noise(mask.grid.tiles, recipe, f"{name}/tiles"))
        else:
            tie, index = _tie(mask)
            logits.append(_noise((int(index.max()) + 1,), recipe, f"{tie}/tiles")[index])
    return logits


def _by_cost(masks: Sequence[WeightMask], budget: _Budget) -> list[Tensor]:
    gains = [budget.gains[mask.name] for mask in masks]
    prices = [np.log(price + 1e-30) for price in _prices(masks, gains)]
    every = np.concatenate([price.ravel() for price in prices])
    # A large tile takes more of a budget than a small one.
    weights = np.concatenate([gain.ravel() for gain in gains])
    share = min(1.0, budget.share)
    middle = np.quantile(every, share, weights=weights, method="inverted_cdf")
    unit = _STRENGTH * _DEVIATION / max(float(every.std()), 1e-6)
    return [_tensor(unit * (price - middle)) for price in prices]


def _prices(
    masks: Sequence[WeightMask], gains: Sequence[NDArray[np.float64]]
) -> list[NDArray[np.float64]]:
    """Returns the cost per gain of each tile, (R, C), or of all that it is tied to."""
    count = 1 + max((int(m.ties.max()) for m in masks if m.ties is not None), default=0)
    cost, whole = np.zeros((2, count))
    for mask, gain in zip(masks, gains, strict=True):
        if mask.ties is not None:
            np.add.at(cost, mask.ties, _scores_of(mask))
            np.add.at(whole, mask.ties, gain)
    return [
        _scores_of(mask) / gain if mask.ties is None else cost[mask.ties] / whole[mask.ties]
        for mask, gain in zip(masks, gains, strict=True)
    ]


def _tied(mask: WeightMask, logits: Tensor, shared: dict[str, Parameter]) -> Tied:
    """Shares the logits of tiles, (R, C), which are equal where tiles are tied."""
    name, index = _tie(mask)
    if name not in shared:
        of_tie = torch.empty(int(index.max()) + 1)
        of_tie[index] = logits
        shared[name] = Parameter(of_tie)
    return Tied(name, shared[name], index)


def _tie(mask: WeightMask) -> tuple[str, Tensor]:
    """Returns a name, the same for tied weights, and the tiles' places in the tie, (R, C)."""
    assert mask.ties is not None
    # A layout's numbers are consecutive, and the same in all weights that are tied.
    first = int(mask.ties.min())
    return f"tie {first}", torch.from_numpy(mask.ties.astype(np.int64) - first)


def free_gates(
    linears: Mapping[str, Linear],
    statistics: Statistics | None,
    recipe: LearnRecipe,
    pattern: Pattern,
    moment: Moment,
) -> dict[str, Gate]:
    """Builds the gates of a method that drops weights one by one: tiles of one weight.

    Logits start at N(0, 0.014), and 3 deviations up or down by the prior's choice within
    each row (LEAP, arXiv 2605.17289). Without statistics there is no choice to start from: a
    checkpoint brings its own logits.
    """
    gates = {}
    for name, linear in linears.items():
        saliency = torch.zeros(linear.shape)
        if statistics is not None:
            evidence = evidence_of(linear, statistics)
            saliency = torch.from_numpy(FREE_SALIENCIES[recipe.saliency](evidence))
        lost = round(recipe.aim * linear.shape[1])
        rank = saliency.argsort(dim=1, stable=True).argsort(dim=1)
        side = torch.where(rank < lost, -1.0, 1.0)
        logits = _noise(linear.shape, recipe, name) + _DEVIATION * _STRENGTH * side
        stored = pattern.start(saliency, _generator(recipe, name))
        grid = TileGrid(*(tuple(range(size + 1)) for size in linear.shape))
        gates[name] = Gate(name, grid, pattern, moment, tiles=logits, stored=stored)
    return gates


def _noise(shape: tuple[int, ...], recipe: LearnRecipe, name: str) -> Tensor:
    return _DEVIATION * torch.randn(shape, generator=_generator(recipe, f"{name}/start"))


def _generator(recipe: LearnRecipe, name: str) -> torch.Generator:
    # Steps count from 0: this place is before the first.
    return Draw(recipe.seed, -1, 0).generator(name, torch.device("cpu"))


def _scores_of(mask: WeightMask) -> NDArray[np.float32]:
    assert mask.scores is not None
    return mask.scores


def _tensor(array: NDArray[np.floating]) -> Tensor:
    return torch.from_numpy(np.asarray(array, np.float32))
