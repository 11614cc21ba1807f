"""Masks from one pass over a little text: 2:4 patterns by rank, tiles by cost.

N: out features. K: in features. R, C: tiles along N and K.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from patch_compile.errors import RecipeError
from patch_compile.io.digests import digests
from patch_compile.learn._progress import Progress, tell
from patch_compile.learn.calibrate import Statistics, calibrate
from patch_compile.learn.candidates import (
    Candidates,
    FreeRegions,
    FreeWeight,
    ScoredTiles,
    made_by,
)
from patch_compile.learn.layout import Layout, layout
from patch_compile.learn.linears import Linear, prunable
from patch_compile.learn.model import LoadedModel
from patch_compile.learn.obs import BLOCK
from patch_compile.learn.scores import (
    COSTS,
    FREE_SALIENCIES,
    SALIENCIES,
    Evidence,
    needs_fisher,
    needs_grams,
    needs_moments,
)
from patch_compile.learn.text import windows
from patch_compile.recipe import LearnRecipe
from patch_compile.tiles.geometry import Geometry
from patch_compile.tiles.masks import Masks
from patch_compile.tiles.pattern import top2_of_4
from patch_compile.tiles.weight_mask import WeightMask, from_keep

__all__ = [
    "calibration_windows",
    "evidence_of",
    "gather_statistics",
    "rank_tiles",
    "scored_mask",
]

# What recipes of one calibration may differ in.
_OF_A_CUT = ("tile", "tie", "tie_block", "sparsity", "budget")

# What an unstructured method compares the scores of: each weight of a layer with all others
# (magnitude), with those of its row (Wanda), or of its block of columns (SparseGPT).
_REGIONS: Mapping[str, Geometry] = {
    "magnitude": Geometry(None, None),
    "wanda": Geometry(1, None),
    "sparsegpt": Geometry(None, BLOCK),
}


def rank_tiles(
    model: LoadedModel,
    sources: Sequence[str | Path],
    recipes: Sequence[LearnRecipe],
    progress: Progress | None = None,
) -> list[Candidates]:
    """Finds for every weight the best pattern, and for every tile what going 2:4 costs.

    Every weight gets the 2:4 pattern that keeps the best two of each four by
    `recipe.saliency`; every tile is charged what `recipe.ranking` says its lost weights cost.
    Unstructured masks go by the saliency alone. The same arguments give the same result.

    Args:
        model: unchanged afterwards.
        sources: texts to calibrate on; not read for `magnitude` with `error`.
        recipes: they may differ in `tile`, ties, `sparsity` and `budget`, and share one
            calibration, which is most of the time.
        progress: called with (done, total, what).

    Returns:
        The candidates of each recipe.

    Raises:
        RecipeError: if the recipes differ in anything else, a tie cannot be had, or a text is
            needed and missing, unreadable or too short.
        ModelError: if the model has nothing to prune or to tie, or cannot be calibrated.
    """
    first = _common(recipes)
    linears = prunable(model.module, first.include, first.ignore)
    if first.free:
        weights = _free(model, linears, sources, first, progress)
        regions = _REGIONS[first.method]
        return [FreeRegions(weights, regions, made_by(model, sources, r)) for r in recipes]
    layouts = [layout(model.module, linears, recipe) for recipe in recipes]
    statistics = gather_statistics(model, linears, sources, first, progress)
    made: list[list[WeightMask]] = [[] for _ in recipes]
    for done, linear in enumerate(linears.values()):
        tell(progress, done, len(linears), "ranking weights")
        evidence = evidence_of(linear, statistics)
        known = digests(evidence.weight)
        for recipe, cuts, masks in zip(recipes, layouts, made, strict=True):
            masks.append(_ranked(linear, cuts[linear.name], evidence, known, recipe))
    tell(progress, len(linears), len(linears), "ranking weights")
    return [
        ScoredTiles(Masks({m.name: m for m in masks}, made_by(model, sources, recipe)))
        for recipe, masks in zip(recipes, made, strict=True)
    ]


def _free(
    model: LoadedModel,
    linears: Mapping[str, Linear],
    sources: Sequence[str | Path],
    recipe: LearnRecipe,
    progress: Progress | None,
) -> list[FreeWeight]:
    statistics = gather_statistics(model, linears, sources, recipe, progress)
    weights = []
    for linear in linears.values():
        evidence = evidence_of(linear, statistics)
        known = digests(evidence.weight)
        scores = FREE_SALIENCIES[recipe.method](evidence)
        weights.append(FreeWeight(linear.name, scores, known))
    return weights


def _common(recipes: Sequence[LearnRecipe]) -> LearnRecipe:
    first = recipes[0]
    for recipe in recipes:
        cut = {name: getattr(first, name) for name in _OF_A_CUT}
        if replace(recipe, **cut) != first:
            raise RecipeError(
                f"recipes | {recipe} and {first} share no calibration; expected them to "
                "differ in tile, ties, sparsity and budget alone; learn them apart"
            )
    return first


def gather_statistics(
    model: LoadedModel,
    linears: Mapping[str, Linear],
    sources: Sequence[str | Path],
    recipe: LearnRecipe,
    progress: Progress | None = None,
) -> Statistics:
    """Runs the model over as much text as the recipe's rankings need, perhaps none.

    Raises:
        RecipeError: if a text is needed and missing, unreadable or too short.
        ModelError: if the model cannot be calibrated.
    """
    moments, fisher, grams = needs_moments(recipe), needs_fisher(recipe), needs_grams(recipe)
    if not moments and not fisher and not grams:
        return Statistics()
    return calibrate(
        model.module,
        linears,
        calibration_windows(model, sources, recipe),
        moments=moments,
        fisher=fisher,
        grams=grams,
        bf16=recipe.precision == "bf16",
        mask_token=model.mask_token,
        progress=progress,
    )


def calibration_windows(
    model: LoadedModel, sources: Sequence[str | Path], recipe: LearnRecipe
) -> NDArray[np.int64]:
    """Returns the windows that the recipe calibrates on, int64 (samples, window).

    Raises:
        RecipeError: if the text is missing, unreadable or too short.
    """
    if not sources:
        raise RecipeError(
            f"data | is missing; method '{recipe.method}' with select '{recipe.ranking}' "
            "needs a text to calibrate on (--data), only magnitude with error does not"
        )
    return windows(sources, model.tokenizer, recipe.samples, recipe.window, recipe.seed)


def evidence_of(linear: Linear, statistics: Statistics) -> Evidence:
    """Takes what is known of one weight out of the statistics."""
    # Popped, so that each weight's share of the gradients is freed when it has been used.
    return Evidence(
        linear.array(),
        statistics.moments.pop(linear.name, None),
        statistics.fisher.pop(linear.name, None),
        statistics.grams.pop(linear.name, None),
    )


def _ranked(
    linear: Linear,
    cut: Layout,
    evidence: Evidence,
    known: Mapping[str, str],
    recipe: LearnRecipe,
) -> WeightMask:
    saliency = SALIENCIES[recipe.saliency](evidence)
    keep = top2_of_4(saliency)
    cost = COSTS[recipe.ranking](evidence, saliency)
    scores = cut.grid.total(np.where(keep, np.float32(0), cost))
    return scored_mask(linear, cut, keep, scores, known)


def scored_mask(
    linear: Linear,
    cut: Layout,
    keep: NDArray[np.bool_],
    scores: NDArray[np.floating],
    known: Mapping[str, str],
) -> WeightMask:
    """Builds the mask of a weight whose tiles are all 2:4.

    Args:
        linear: the weight's layer.
        cut: of the weight.
        keep: bool (N, K), two of every 4 along K.
        scores: float (R, C), the cost of each tile.
        known: the weight's digests.
    """
    return from_keep(
        linear.name,
        cut.grid,
        np.zeros(cut.grid.tiles, np.bool_),
        keep,
        scores=scores.astype(np.float32),
        digests=known,
        geometry=cut.geometry,
        ties=cut.ties,
    )
