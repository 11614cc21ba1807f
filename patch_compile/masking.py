"""Which masks a recipe takes, and which weights of a model they belong to."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from patch_compile.errors import RecipeError
from patch_compile.io.infer import infer_masks
from patch_compile.io.load_masks import load_masks
from patch_compile.io.stored_weight import StoredWeight
from patch_compile.names import chosen
from patch_compile.passes.binding import Binding, bind, in_features
from patch_compile.passes.elsewhere import find_elsewhere
from patch_compile.passes.pipeline import inline
from patch_compile.passes.sites import Refusal, Site, find_sites, unshared
from patch_compile.passes.structure import find_structure
from patch_compile.recipe import CompileRecipe
from patch_compile.tiles.cut import cut_masks
from patch_compile.tiles.geometry import Geometry
from patch_compile.tiles.masks import Masks
from patch_compile.tiles.pattern import pack_keep, top2_of_4
from patch_compile.tiles.regroup import Regrouped, regroup
from patch_compile.tiles.time_budget import meet_budget
from patch_compile.tiles.time_cost import cost_of
from patch_compile.tiles.weight_mask import WeightMask

__all__ = ["bind_masks", "shapes", "stamp_of"]

Progress = Callable[[int, int, str], None]


def bind_masks(
    model: ir.Model,
    masks: str | Path | Masks,
    recipe: CompileRecipe,
    progress: Progress | None = None,
) -> tuple[list[Binding], dict[str, str], Masks]:
    """Finds the weights of a model that masks belong to.

    Args:
        model: its functions are inlined.
        masks: masks, the path of a mask file, or `infer`.
        recipe: which of them to take, and within what budget.
        progress: called with (weights done, weights in all, what) while masks are inferred.

    Returns:
        The bindings in graph order; the reason for each mask or weight left alone; the
        masks that the recipe takes.
    """
    inline(model)
    sites, refusals = find_sites(model)
    if str(masks) != "infer":
        sites, refusals = unshared(sites, refusals)
    known = _masks(masks, sites, recipe, progress)
    wanted = _wanted(list(known.weights), recipe)
    if known.weights and not wanted:
        raise RecipeError(
            f"include and ignore | leave none of {len(known.weights)} masks, among them "
            f"'{next(iter(known.weights))}'; expected one at least; mend the patterns"
        )
    kept = Masks({name: known.weights[name] for name in wanted}, known.made_by)
    if str(masks) == "infer":
        found = [s for s in sites if s.name in kept.weights]
        bindings = [Binding(s, (kept.weights[s.name],), "name") for s in found]
        left_alone: dict[str, str] = {}
    else:
        told = {site.name for site in sites} | {refusal.name for refusal in refusals}
        bindings, left_alone = bind(sites, refusals, kept, find_elsewhere(model, told))
    left_out = dict.fromkeys(known.weights.keys() - set(wanted), "left out by the recipe")
    left_alone |= dict(sorted(left_out.items()))
    if recipe.regroup:
        bindings, kept = _regrouped(bindings, kept, recipe)
    bindings, kept = _within_budget(model, bindings, kept, recipe)
    return bindings, left_alone | _unmasked(sites, refusals, bindings), kept


def _regrouped(
    bindings: list[Binding], masks: Masks, recipe: CompileRecipe
) -> tuple[list[Binding], Masks]:
    """Cuts free tile maps anew; what that cost joins `made_by`."""
    cost = cost_of(recipe, shapes(bindings))
    facts = {"weights": 0, "loss_before": 0.0, "loss_after": 0.0}
    cut = []
    for binding in bindings:
        found = regroup(binding.masks, recipe, cost)
        if found is not None:
            facts["weights"] += 1
            facts["loss_before"] += found.before
            facts["loss_after"] += found.after
            binding = replace(binding, masks=tuple(_anew(binding, found)))
        cut.append(binding)
    anew = {mask.name: mask for binding in cut for mask in binding.masks}
    return cut, Masks({**masks.weights, **anew}, {**masks.made_by, "regroup": facts})


def _anew(binding: Binding, found: Regrouped) -> Iterator[WeightMask]:
    start = 0
    for mask, dense in zip(binding.masks, found.dense, strict=True):
        bits = partial(_bits_anew, binding.site.weight, mask, dense, start)
        geometry = f"{mask.geometry} in {found.form}"
        yield replace(mask, dense=dense, bits=bits, geometry=geometry)
        start += mask.shape[0]


def _bits_anew(
    weight: StoredWeight, mask: WeightMask, dense: NDArray[np.bool_], start: int
) -> NDArray[np.uint8]:
    """Keeps the mask's pattern where it has one, and the larger two of four elsewhere."""
    stored = weight.tensor.numpy()
    rows = (stored.T if weight.transposed else stored)[start : start + mask.shape[0]]
    larger = top2_of_4(np.abs(rows.astype(np.float32)))
    pattern = np.where(mask.grid.expand(mask.dense), larger, mask.keep())
    return pack_keep(pattern | mask.grid.expand(dense))


def _within_budget(
    model: ir.Model, bindings: list[Binding], masks: Masks, recipe: CompileRecipe
) -> tuple[list[Binding], Masks]:
    """Makes tiles dense as the recipe's budget says; its outcome joins `made_by`."""
    cost = cost_of(recipe, shapes(bindings))
    facts: dict[str, float] = {}
    if not recipe.budgeted:
        return bindings, masks
    # A forced form leaves nothing to choose by time.
    if cost is None or recipe.lowering != "auto":
        assert recipe.sparsity is not None
        chosen_masks = dict(cut_masks(masks, recipe.sparsity).weights)
    else:
        structure = find_structure(model, [b.site for b in bindings])
        weights = {b.site.name: b.masks for b in bindings}
        found = meet_budget(weights, structure, recipe, cost)
        chosen_masks = {**masks.weights, **found.masks}
        facts = {"saved": found.gain, "loss": found.loss, "gap": found.gap}
    cut = [replace(b, masks=tuple(chosen_masks[m.name] for m in b.masks)) for b in bindings]
    return cut, Masks(
        chosen_masks, {**masks.made_by, "budget": facts} if facts else masks.made_by
    )


def _wanted(names: list[str], recipe: CompileRecipe) -> list[str]:
    return chosen(names, recipe.include, recipe.ignore)


def shapes(bindings: Sequence[Binding]) -> list[tuple[int, int]]:
    """Lists (N, K) of every bound weight."""
    return [
        (sum(mask.shape[0] for mask in binding.masks), binding.masks[0].shape[1])
        for binding in bindings
    ]


def _masks(
    masks: str | Path | Masks,
    sites: Sequence[Site],
    recipe: CompileRecipe,
    progress: Progress | None,
) -> Masks:
    if isinstance(masks, Masks):
        masks.check()
        return masks
    if str(masks) != "infer":
        return load_masks(
            masks,
            tile=recipe.tile,
            in_features=in_features(sites),
            wanted=partial(_wanted, recipe=recipe),
        )
    # By initializer: several products may carry one parameter name.
    named = [(site.name, site.weight) for site in sites]
    return infer_masks(named, Geometry.parse(recipe.tile), progress)


def _unmasked(
    sites: Sequence[Site], refusals: Sequence[Refusal], bindings: Sequence[Binding]
) -> dict[str, str]:
    bound = {binding.site.name for binding in bindings}
    free = {site.name: "no mask names this weight" for site in sites if site.name not in bound}
    return free | {refusal.name: refusal.reason for refusal in refusals}


def stamp_of(masks: Masks, recipe: CompileRecipe) -> str:
    """What a compiled model remembers: all that its weights' values depend on."""
    prints = sorted(mask.fingerprint() for mask in masks.weights.values())
    return sha256(f"{recipe.restore} {prints}".encode()).hexdigest()
