"""Masks from one pass over a little text: 2:4 patterns by rank, tiles by cost.

N: out features. K: in features. R, C: tiles along N and K.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patch_compile.errors import RecipeError
from patch_compile.io.digests import digests
from patch_compile.learn._progress import Progress, tell
from patch_compile.learn.calibrate import Statistics, calibrate
from patch_compile.learn.linears import Linear, prunable
from patch_compile.learn.model import LoadedModel
from patch_compile.learn.scores import (
    COSTS,
    SALIENCIES,
    Evidence,
    needs_fisher,
    needs_moments,
)
from patch_compile.learn.text import windows
from patch_compile.recipe import LearnRecipe
from patch_compile.tiles.budget import choose_sparse_tiles
from patch_compile.tiles.geometry import Geometry, TileGrid
from patch_compile.tiles.masks import Masks
from patch_compile.tiles.pattern import pack_keep, top2_of_4, unpack_keep
from patch_compile.tiles.weight_mask import WeightMask, from_keep

__all__ = ["learn_masks", "learn_masks_for"]

_PACKAGES = ("patch-compile", "torch", "transformers")


@dataclass(frozen=True, eq=False)
class _Draft:
    """A weight's pattern and tile scores, before any tile is chosen.

    Attributes:
        name: of the weight.
        grid: the cut into tiles.
        pattern: uint8 (N, ceil(K/8)), the keep bits if every tile went 2:4.
        scores: float32 (R, C), the cost of each tile if it goes 2:4.
        digests: sha256 of the weight by element type.
    """

    name: str
    grid: TileGrid
    pattern: NDArray[np.uint8]
    scores: NDArray[np.float32]
    digests: Mapping[str, str]


def learn_masks(
    model: LoadedModel,
    data: Path | None,
    recipe: LearnRecipe,
    progress: Progress | None = None,
) -> Masks:
    """Chooses which tiles of a model go 2:4, and what stays in them.

    Every weight gets the 2:4 pattern that keeps the best two of each four by
    `recipe.method`. Every tile is charged what `recipe.select` says its lost weights cost,
    and the cheapest tiles per zero go 2:4, over all weights together, until the model has
    `recipe.sparsity` zeros, to within half a tile. The same arguments give the same masks.

    Args:
        model: unchanged afterwards.
        data: UTF-8 text or `.jsonl` to calibrate on; not read for `magnitude` with `error`.
        recipe: what is wanted.
        progress: called with (done, total, what).

    Raises:
        RecipeError: if a text is needed and missing, unreadable or too short.
        ModelError: if the model has nothing to prune or cannot be calibrated.
    """
    return learn_masks_for(model, data, [recipe], progress)[0]


def learn_masks_for(
    model: LoadedModel,
    data: Path | None,
    recipes: Sequence[LearnRecipe],
    progress: Progress | None = None,
) -> list[Masks]:
    """Makes several sets of masks from one calibration, which is most of the time.

    The recipes may differ in `tile` and `sparsity`; see `learn_masks` for the rest.

    Raises:
        RecipeError: if the recipes differ in anything else.
    """
    first = _common(recipes)
    linears = prunable(model.module, first.include, first.ignore)
    statistics = _statistics(model, linears, data, first, progress)
    drafts: list[list[_Draft]] = [[] for _ in recipes]
    for done, linear in enumerate(linears.values()):
        tell(progress, done, len(linears), "ranking weights")
        evidence = _evidence(linear, statistics)
        known = digests(evidence.weight)
        for recipe, made in zip(recipes, drafts, strict=True):
            made.append(_draft(linear, evidence, known, recipe))
    tell(progress, len(linears), len(linears), "ranking weights")
    return [_masks(model, data, *pair) for pair in zip(recipes, drafts, strict=True)]


def _common(recipes: Sequence[LearnRecipe]) -> LearnRecipe:
    first = recipes[0]
    for recipe in recipes:
        if replace(recipe, tile=first.tile, sparsity=first.sparsity) != first:
            raise RecipeError(
                f"recipes | {recipe} and {first} share no calibration; expected them to "
                "differ in tile and sparsity alone; learn them apart"
            )
    return first


def _masks(
    model: LoadedModel, data: Path | None, recipe: LearnRecipe, drafts: Sequence[_Draft]
) -> Masks:
    geometry = Geometry.parse(recipe.tile)
    sparse = _sparse_tiles(drafts, recipe.sparsity)
    chosen = [_mask(d, s, geometry) for d, s in zip(drafts, sparse, strict=True)]
    weights = {mask.name: mask for mask in chosen}
    masks = Masks(weights, _made_by(model, data, recipe, Masks(weights).sparsity))
    masks.check()
    return masks


def _statistics(
    model: LoadedModel,
    linears: Mapping[str, Linear],
    data: Path | None,
    recipe: LearnRecipe,
    progress: Progress | None,
) -> Statistics:
    moments, fisher = needs_moments(recipe), needs_fisher(recipe)
    if not moments and not fisher:
        return Statistics({}, {})
    if data is None:
        raise RecipeError(
            f"data | is missing; method '{recipe.method}' with select '{recipe.select}' needs "
            "a text to calibrate on (--data), only magnitude with error does not"
        )
    tokens = windows(data, model.tokenizer, recipe.samples, recipe.window, recipe.seed)
    return calibrate(
        model.module, linears, tokens, moments=moments, fisher=fisher, progress=progress
    )


def _evidence(linear: Linear, statistics: Statistics) -> Evidence:
    # Popped, so that each weight's share of the gradients is freed when it has been used.
    moments = statistics.moments.pop(linear.name, None)
    return Evidence(linear.array(), moments, statistics.fisher.pop(linear.name, None))


def _draft(
    linear: Linear, evidence: Evidence, known: Mapping[str, str], recipe: LearnRecipe
) -> _Draft:
    grid = Geometry.parse(recipe.tile).grid(linear.shape)
    saliency = SALIENCIES[recipe.method](evidence)
    keep = top2_of_4(saliency)
    cost = COSTS[recipe.select](evidence, saliency)
    scores = grid.total(np.where(keep, np.float32(0), cost)).astype(np.float32)
    return _Draft(linear.name, grid, pack_keep(keep), scores, known)


def _sparse_tiles(drafts: Sequence[_Draft], sparsity: float) -> list[NDArray[np.bool_]]:
    """Chooses for each draft which tiles go 2:4, bool (R, C)."""
    areas = [draft.grid.areas for draft in drafts]
    total = sum(int(area.sum()) for area in areas)
    # K and tile widths are multiples of 4: half of a tile is a whole number of zeros.
    zeros = [area // 2 for area in areas]
    return choose_sparse_tiles([d.scores for d in drafts], zeros, round(sparsity * total))


def _mask(draft: _Draft, sparse: NDArray[np.bool_], geometry: Geometry) -> WeightMask:
    dense = ~sparse
    keep = unpack_keep(draft.pattern, draft.grid.shape[1]) | draft.grid.expand(dense)
    return from_keep(
        draft.name,
        draft.grid,
        dense,
        keep,
        scores=draft.scores,
        digests=draft.digests,
        geometry=str(geometry),
    )


def _made_by(
    model: LoadedModel, data: Path | None, recipe: LearnRecipe, sparsity: float
) -> dict[str, Any]:
    options = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in asdict(recipe).items()
    }
    return {
        "method": f"one-shot {recipe.method}",
        "recipe": options,
        "model": model.name,
        "data": data.name if data is not None else None,
        "versions": _versions(),
        "sparsity": sparsity,
    }


def _versions() -> dict[str, str]:
    found = ((package, _version(package)) for package in _PACKAGES)
    return {package: number for package, number in found if number is not None}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
