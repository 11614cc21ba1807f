"""Each method: its pattern, its tiles, its schedules and rates."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from patch_compile.learn.training.patterns import (
    FixedPattern,
    GumbelPattern,
    NoPattern,
    Pattern,
    TopTwoPattern,
)
from patch_compile.learn.training.schedule import Anneal
from patch_compile.recipe import LearnRecipe

__all__ = ["Settings", "settings"]

_MASKLLM = Anneal(temperature=(4.0, 0.05), scale=(100.0, 500.0))
_TILE = Anneal(temperature=(2.0, 0.05), scale=(25.0, 350.0))
_SOFT = Anneal(temperature=(4.0, 0.05), scale=(25.0, 350.0))


@dataclass(frozen=True)
class Settings:
    """How one method learns.

    Attributes:
        pattern: of sparse tiles.
        tile: course of the tile logits, where they are learned.
        course: of the pattern's logits.
        lr: peak rate of Adam.
        betas: of Adam.
        density_weight: lambda 1 of PATCH.
        norm_weight: lambda 2 of PATCH.
    """

    pattern: Pattern
    tile: Anneal
    course: Anneal
    lr: float
    betas: tuple[float, float]
    density_weight: float
    norm_weight: float


# PATCH: arXiv 2509.23410, table 6. MaskLLM: arXiv 2409.17481 and its released scripts. LEAP:
# arXiv 2605.17289. `topk-ste` is our own.
_METHODS: Mapping[str, Settings] = {
    "patch-tile": Settings(
        FixedPattern(),
        Anneal(temperature=(2.0, 0.05), scale=(100.0, 500.0)),
        _MASKLLM,
        lr=1e-3,
        betas=(0.9, 0.95),
        density_weight=3.0,
        norm_weight=0.1,
    ),
    "patch-joint": Settings(
        GumbelPattern(),
        _TILE,
        _MASKLLM,
        lr=1e-3,
        betas=(0.9, 0.95),
        density_weight=7.0,
        norm_weight=10.0,
    ),
    "maskllm": Settings(
        GumbelPattern(),
        _TILE,
        _MASKLLM,
        lr=5e-4,
        betas=(0.9, 0.95),
        density_weight=7.0,
        norm_weight=10.0,
    ),
    "topk-ste": Settings(
        TopTwoPattern(),
        _TILE,
        _MASKLLM,
        lr=1e-2,
        betas=(0.9, 0.98),
        density_weight=7.0,
        norm_weight=0.0,
    ),
    "leap": Settings(
        NoPattern(),
        _SOFT,
        _MASKLLM,
        lr=1e-3,
        betas=(0.9, 0.95),
        density_weight=7.0,
        norm_weight=10.0,
    ),
}


def settings(recipe: LearnRecipe) -> Settings:
    """Returns the method's settings with what the recipe overrides."""
    given = {
        name: value
        for name in ("lr", "density_weight", "norm_weight")
        if (value := getattr(recipe, name)) is not None
    }
    return replace(_METHODS[recipe.method], **given)
