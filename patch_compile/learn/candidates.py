"""What a method found, before a budget says how much of it is used.

N: out features. K: in features. R, C: tiles along N and K.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from patch_compile.errors import RecipeError
from patch_compile.learn.model import LoadedModel
from patch_compile.names import written
from patch_compile.recipe import CompileRecipe, LearnRecipe
from patch_compile.tiles.cut import cut_masks
from patch_compile.tiles.geometry import Geometry
from patch_compile.tiles.masks import Masks
from patch_compile.tiles.promise import cut_in_time
from patch_compile.tiles.weight_mask import WeightMask, from_keep

__all__ = [
    "Candidates",
    "FixedMasks",
    "FreeRegions",
    "FreeWeight",
    "FreeWeights",
    "ScoredTiles",
    "asked_of",
    "free_mask",
    "made_by",
    "quotas",
]

_PACKAGES = ("patch-compile", "torch", "transformers")


class Candidates(Protocol):
    """Masks of any sparsity from one run."""

    def cut(self, sparsity: float) -> Masks:
        """Returns masks of this sparsity, exact to half a tile or to one weight."""
        ...


@dataclass(frozen=True, eq=False)
class ScoredTiles:
    """Every tile 2:4, with its score; the budget makes the dearest dense again.

    Attributes:
        masks: all tiles 2:4, scored.
    """

    masks: Masks

    def cut(self, sparsity: float) -> Masks:
        """Returns masks of this sparsity, to within half a tile (or half a tied group)."""
        return _checked(cut_masks(self.masks, sparsity))

    def keep(self, promise: CompileRecipe) -> Masks:
        """Returns masks that are predicted to be just as fast as a budget of time asks."""
        return _checked(cut_in_time(self.masks, promise))


@dataclass(frozen=True, eq=False)
class FreeWeight:
    """A weight whose elements go one by one.

    Attributes:
        name: of the weight.
        scores: float (N, K), the larger, the rather a weight stays.
        digests: sha256 of the weight by element type.
    """

    name: str
    scores: NDArray[Any]
    digests: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class FreeWeights:
    """Unstructured masks: zeros anywhere, every tile dense to the compiler.

    Attributes:
        weights: with a score for every element, comparable over the whole model.
        made_by: how they were made.
    """

    weights: Sequence[FreeWeight]
    made_by: Mapping[str, Any] = field(default_factory=dict)

    def cut(self, sparsity: float) -> Masks:
        """Returns masks without the lowest scores, exact to one weight."""
        flat = np.concatenate([weight.scores.ravel() for weight in self.weights])
        lost = np.argsort(flat, kind="stable")[: round(sparsity * flat.size)]
        keep = np.ones(flat.size, np.bool_)
        keep[lost] = False
        parts = np.split(keep, np.cumsum([weight.scores.size for weight in self.weights])[:-1])
        masks = [
            free_mask(weight.name, part.reshape(weight.scores.shape), weight.digests)
            for weight, part in zip(self.weights, parts, strict=True)
        ]
        return _checked(Masks({mask.name: mask for mask in masks}, self.made_by))


@dataclass(frozen=True, eq=False)
class FreeRegions:
    """Unstructured masks in which every region of every weight has one sparsity.

    Attributes:
        weights: with a score for every element, comparable within a region.
        regions: the cut of every weight: rows, blocks of columns, or whole weights.
        made_by: how they were made.
    """

    weights: Sequence[FreeWeight]
    regions: Geometry
    made_by: Mapping[str, Any] = field(default_factory=dict)

    def cut(self, sparsity: float) -> Masks:
        """Returns masks without the lowest scores of each region, exact to one weight."""
        masks, before = {}, 0
        for weight in self.weights:
            grid = self.regions.grid(weight.scores.shape)
            counts = quotas(grid.areas, sparsity, before)
            keep = np.ones(weight.scores.shape, np.bool_)
            for column, (start, stop) in enumerate(pairwise(grid.columns)):
                part = np.s_[:, start:stop]
                keep[part] = _without_lowest(weight.scores[part], counts[:, column])
            masks[weight.name] = free_mask(weight.name, keep, weight.digests)
            before += keep.size
        return _checked(Masks(masks, self.made_by))


def quotas(areas: NDArray[Any], sparsity: float, before: int) -> NDArray[np.int64]:
    """Returns how many weights each region loses so that the whole model loses its share.

    What one region rounds off the next gets: regions alone would all round the same way.

    Args:
        areas: weights in each region, integers of any shape.
        sparsity: wanted.
        before: weights in the regions that come before these.
    """
    ends = before + np.concatenate([[0], np.cumsum(areas)])
    return np.diff(np.rint(sparsity * ends)).astype(np.int64).reshape(areas.shape)


def _without_lowest(scores: NDArray[Any], counts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Drops the lowest of scores (N, c), cut by rows into equal regions of these counts."""
    regions = scores.reshape(len(counts), -1)
    order = np.argsort(regions, axis=1, kind="stable")
    keep = np.empty(regions.shape, np.bool_)
    stays = np.arange(regions.shape[1]) >= counts[:, None]
    np.put_along_axis(keep, order, stays, axis=1)
    return keep.reshape(scores.shape)


@dataclass(frozen=True, eq=False)
class FixedMasks:
    """Masks of one sparsity alone: their weights were changed to go with them.

    Attributes:
        masks: without scores, as no cut could give the weights back.
        asked: the sparsity they were made for.
    """

    masks: Masks
    asked: float

    def cut(self, sparsity: float) -> Masks:
        """Returns the masks.

        Raises:
            RecipeError: if another sparsity is asked for.
        """
        if sparsity != self.asked:
            raise RecipeError(
                f"sparsity | is {sparsity}, and the weights were updated for {self.asked}; "
                "update the original model for another"
            )
        return _checked(self.masks)


def free_mask(name: str, keep: NDArray[np.bool_], digests: Mapping[str, str]) -> WeightMask:
    """Builds an unstructured mask, bool (N, K): one dense tile with zeros in it."""
    grid = Geometry(None, None).grid((keep.shape[0], keep.shape[1]))
    dense = np.ones(grid.tiles, np.bool_)
    return from_keep(name, grid, dense, keep, digests=digests, geometry="weight")


def asked_of(found: Candidates, recipe: LearnRecipe) -> list[Masks]:
    """Returns the masks that a recipe asks for: of its budget, or of each of its sparsities.

    Raises:
        RecipeError: if the masks cannot keep the budget.
    """
    if recipe.promise is None:
        return [found.cut(sparsity) for sparsity in recipe.sparsity]
    # The recipe refuses a budget of time where there are no tiles.
    assert isinstance(found, ScoredTiles)
    return [found.keep(recipe.promise)]


def _checked(masks: Masks) -> Masks:
    masks.check()
    return replace(masks, made_by={**masks.made_by, "sparsity": masks.sparsity})


def made_by(
    model: LoadedModel, sources: Sequence[str | Path], recipe: LearnRecipe
) -> dict[str, Any]:
    """Describes a run in plain data: method, recipe, model, texts and versions."""
    options = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in asdict(recipe).items()
    }
    return {
        "method": recipe.method if recipe.learns else f"one-shot {recipe.method}",
        "recipe": options,
        "model": model.name,
        "data": [_called(source) for source in sources],
        "versions": _versions(),
    }


def _called(source: str | Path) -> str:
    # A file's name tells enough; its folder is nobody's business.
    return written(source) if Path(source).exists() else str(source)


def _versions() -> dict[str, str]:
    found = ((package, _version(package)) for package in _PACKAGES)
    return {package: number for package, number in found if number is not None}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
