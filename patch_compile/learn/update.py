"""Masks and new weights together: SparseGPT, one block of the model after the other.

N: out features. K: in features.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from patch_compile._require import require
from patch_compile.errors import ModelError
from patch_compile.io.digests import digests
from patch_compile.learn._progress import Progress, tell
from patch_compile.learn.blocks import Block, chain
from patch_compile.learn.candidates import FixedMasks, free_mask, made_by, quotas
from patch_compile.learn.grams import Grams
from patch_compile.learn.linears import Linear, prunable
from patch_compile.learn.model import LoadedModel, check_place, save_checkpoint
from patch_compile.learn.obs import (
    BLOCK,
    Chooser,
    Lowest,
    TwoOfFour,
    inverse_factor,
    prune_columns,
)
from patch_compile.learn.oneshot import calibration_windows, rank_tiles
from patch_compile.recipe import LearnRecipe
from patch_compile.tiles.geometry import Geometry
from patch_compile.tiles.masks import Masks
from patch_compile.tiles.pattern import pack_keep
from patch_compile.tiles.weight_mask import WeightMask

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["RECORD", "update_weights"]

# Beside the weights; it tells a checkpoint of ours from others.
RECORD = "update.json"
_FORMAT = "patch-compile/update"


def update_weights(
    model: LoadedModel,
    sources: Sequence[str | Path],
    recipe: LearnRecipe,
    folder: Path,
    progress: Progress | None = None,
) -> FixedMasks:
    """Prunes a model and moves the weights that stay to make up for those that go.

    The tiles are chosen first, on the model as it is: those that stay dense lose nothing.
    Then each block of the model is pruned on what the pruned blocks before it give.

    Args:
        model: changed: lost weights are 0, others new.
        sources: texts to calibrate on.
        recipe: of `sparsegpt`.
        folder: for the checkpoint of the new weights.
        progress: called with (done, total, what).

    Returns:
        The masks, with the digests of the new weights.

    Raises:
        RecipeError: if a tie cannot be had, or a text is missing, unreadable or too short.
        ModelError: if the model has nothing to prune, cannot be calibrated, or is not a chain
            of blocks, or the folder cannot be written or holds another model.
    """
    linears = prunable(model.module, recipe.include, recipe.ignore)
    check_place(folder, RECORD)
    masks = _whole(linears) if recipe.free else _tiled(model, sources, recipe, progress)
    choosers = _choosers(masks, recipe)
    links = chain(model.module, calibration_windows(model, sources, recipe))
    _check_inside(choosers, links.blocks)
    hidden = links.hidden
    for done, block in enumerate(links.blocks):
        tell(progress, done, len(links.blocks), "updating blocks")
        inside = {n: linears[n] for n in choosers if n.startswith(f"{block.name}.")}
        for name, keep in _update(block, inside, choosers, hidden).items():
            masks[name] = _pruned(masks[name], linears[name], keep)
        hidden = [block(states) for states in hidden]
    tell(progress, len(links.blocks), len(links.blocks), "updating blocks")
    record = {"format": _FORMAT, "version": 1, "made_by": made_by(model, sources, recipe)}
    save_checkpoint(model, folder, {RECORD: json.dumps(record, indent=1) + "\n"})
    return FixedMasks(Masks(masks, made_by(model, sources, recipe)), recipe.aim)


def _tiled(
    model: LoadedModel,
    sources: Sequence[str | Path],
    recipe: LearnRecipe,
    progress: Progress | None,
) -> dict[str, WeightMask]:
    """Chooses the tiles."""
    (ranked,) = rank_tiles(model, sources, [recipe], progress)
    masks = ranked.cut(recipe.aim).weights
    return {name: replace(mask, scores=None) for name, mask in masks.items()}


def _whole(linears: Mapping[str, Linear]) -> dict[str, WeightMask]:
    return {
        name: free_mask(name, np.ones(linear.shape, np.bool_), {})
        for name, linear in linears.items()
    }


def _choosers(masks: Mapping[str, WeightMask], recipe: LearnRecipe) -> dict[str, Chooser]:
    """Says of every weight that loses any how it chooses them."""
    if not recipe.free:
        return {
            name: TwoOfFour(mask.grid.expand(mask.dense))
            for name, mask in masks.items()
            if not mask.dense.all()
        }
    choosers: dict[str, Chooser] = {}
    before = 0
    for name, mask in masks.items():
        areas = Geometry(None, BLOCK).grid(mask.shape).areas
        choosers[name] = Lowest(quotas(areas, recipe.aim, before)[0])
        before += int(areas.sum())
    return choosers


def _check_inside(choosers: Mapping[str, Chooser], blocks: Sequence[Block]) -> None:
    places = tuple(f"{block.name}." for block in blocks)
    for name in choosers:
        if not name.startswith(places):
            raise ModelError(
                f"weight '{name}' | lies in no block of the model, and --update goes from "
                "block to block; leave it out (--ignore)"
            )


def _update(
    block: Block,
    linears: Mapping[str, Linear],
    choosers: Mapping[str, Chooser],
    hidden: Sequence["Tensor"],
) -> dict[str, NDArray[np.bool_]]:
    """Prunes the weights of one block, and returns what they keep, bool (N, K)."""
    torch = require("torch", "learn")
    grams = Grams(linears)
    with grams.watch():
        for states in hidden if linears else ():
            block(states)

    @cache
    def factor(owner: str) -> NDArray[np.float32]:
        return inverse_factor(grams.sums[owner].cpu().numpy())

    kept = {}
    for name, linear in linears.items():
        pruned = prune_columns(linear.array(), factor(grams.owner(name)), choosers[name])
        linear.matrix(linear.weight.data).copy_(torch.from_numpy(pruned.weight))
        kept[name] = pruned.keep
    return kept


def _pruned(mask: WeightMask, linear: Linear, keep: NDArray[np.bool_]) -> WeightMask:
    packed = pack_keep(keep)
    return replace(mask, bits=lambda: packed, digests=digests(linear.array()))
