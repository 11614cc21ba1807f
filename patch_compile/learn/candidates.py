"""What a method found, before a budget says how much of it is used.

N: out features. K: in features. R, C: tiles along N and K.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from patch_compile.learn.model import LoadedModel
from patch_compile.recipe import LearnRecipe
from patch_compile.tiles.cut import cut_masks
from patch_compile.tiles.geometry import Geometry
from patch_compile.tiles.masks import Masks
from patch_compile.tiles.weight_mask import WeightMask, from_keep

__all__ = ["Candidates", "FreeWeight", "FreeWeights", "ScoredTiles", "made_by"]

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
        masks = [_free(*pair) for pair in zip(self.weights, parts, strict=True)]
        return _checked(Masks({mask.name: mask for mask in masks}, self.made_by))


def _free(weight: FreeWeight, keep: NDArray[np.bool_]) -> WeightMask:
    grid = Geometry(None, None).grid(weight.scores.shape)
    keep = keep.reshape(weight.scores.shape)
    dense = np.ones(grid.tiles, np.bool_)
    return from_keep(weight.name, grid, dense, keep, digests=weight.digests, geometry="weight")


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
    return Path(source).name if Path(source).exists() else str(source)


def _versions() -> dict[str, str]:
    found = ((package, _version(package)) for package in _PACKAGES)
    return {package: number for package, number in found if number is not None}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
