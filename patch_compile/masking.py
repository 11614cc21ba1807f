"""Which masks a recipe takes, and which weights of a model they belong to."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import onnx_ir as ir

from patch_compile.errors import RecipeError
from patch_compile.io.infer import infer_masks
from patch_compile.io.load_masks import load_masks
from patch_compile.names import chosen
from patch_compile.passes.binding import Binding, bind, in_features
from patch_compile.passes.pipeline import inline
from patch_compile.passes.sites import Refusal, Site, find_sites
from patch_compile.recipe import CompileRecipe
from patch_compile.tiles.cut import cut_masks
from patch_compile.tiles.geometry import Geometry
from patch_compile.tiles.masks import Masks
from patch_compile.tiles.time_budget import meet_budget
from patch_compile.tiles.time_cost import cost_of

__all__ = ["bind_masks", "shapes"]

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
        bindings, left_alone = bind(sites, refusals, kept)
    left_out = dict.fromkeys(known.weights.keys() - set(wanted), "left out by the recipe")
    left_alone |= dict(sorted(left_out.items()))
    bindings, kept = _within_budget(bindings, kept, recipe)
    return bindings, left_alone | _unmasked(sites, refusals, bindings), kept


def _within_budget(
    bindings: list[Binding], masks: Masks, recipe: CompileRecipe
) -> tuple[list[Binding], Masks]:
    """Makes tiles dense as the recipe's budget says; its outcome joins `made_by`."""
    cost = cost_of(recipe, shapes(bindings))
    facts: dict[str, float] = {}
    if recipe.sparsity is not None:
        chosen_masks = dict(cut_masks(masks, recipe.sparsity).weights)
    elif cost is not None and (recipe.speedup or recipe.max_loss is not None):
        found = meet_budget({b.site.name: b.masks for b in bindings}, recipe, cost)
        chosen_masks = {**masks.weights, **found.masks}
        facts = {"saved": found.gain, "loss": found.loss, "gap": found.gap}
    else:
        return bindings, masks
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
