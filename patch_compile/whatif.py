"""What 2:4 would buy on other GPUs and at other numbers of tokens; nothing is rewritten.

Each row is the price of a whole plan, merged products and branches included, as compiling for
that target and those tokens would make it.

N: out features. K: in features.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from patch_compile.errors import InternalError, ModelError, RecipeError
from patch_compile.io.onnx_model import load_model
from patch_compile.masking import bind_masks
from patch_compile.passes.pipeline import inline
from patch_compile.passes.sites import Site, find_sites
from patch_compile.passes.structure import find_structure
from patch_compile.recipe import CompileRecipe
from patch_compile.targets.target import Target, available, parse
from patch_compile.tiles.blocks import Structure
from patch_compile.tiles.geometry import Geometry
from patch_compile.tiles.groups import plan_weights
from patch_compile.tiles.masks import Masks
from patch_compile.tiles.menus import Weights
from patch_compile.tiles.operations import of_plan
from patch_compile.tiles.plan import Plan
from patch_compile.tiles.time_cost import TimeCost
from patch_compile.tiles.weight_mask import WeightMask

__all__ = ["WhatIf", "named_targets", "what_if"]

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class WhatIf:
    """Predictions for one target and one number of tokens; never measured.

    Attributes:
        target: GPU and dtype.
        basis: what the predictions rest on.
        estimate: nothing was measured on this GPU.
        tokens: of one run.
        extrapolated: so few, or so many, were never measured.
        dense_us: of all weights that could be cut, dense, each a product of its own.
        merged_us: dense, weights of one X as one wide product, as an engine may do by itself.
        planned_us: of the plan; without masks, of the best plan for weights all 2:4.
        everywhere_us: every weight 2:4, faster or not, each a product of its own.
        products: of the plan, those that stay dense too.
        lowerings: number of weights by the form that they take.
    """

    target: str
    basis: str
    estimate: bool
    tokens: int
    extrapolated: bool
    dense_us: float
    merged_us: float
    planned_us: float
    everywhere_us: float
    products: int
    lowerings: Mapping[str, int]

    @property
    def speedup(self) -> float:
        """Of the planned model over the dense one, each weight a product of its own."""
        return self.dense_us / self.planned_us

    @property
    def speedup_over_merged(self) -> float:
        """The same, if the engine merges dense weights of one X by itself."""
        return self.merged_us / self.planned_us

    def to_json(self) -> dict[str, Any]:
        """Returns every number by name."""
        gains = {"speedup": self.speedup, "speedup_over_merged": self.speedup_over_merged}
        return {**asdict(self), **gains}


def what_if(
    model: str | Path,
    masks: str | Path | Masks | None,
    targets: Sequence[str],
    recipe: CompileRecipe | None = None,
    progress: Progress | None = None,
) -> list[WhatIf]:
    """Plans a model for several targets and numbers of tokens.

    Args:
        model: path of an .onnx file.
        masks: see `compile_model`; None asks what 2:4 buys at best, from shapes alone.
        targets: names like `a100-bf16`, see `named_targets`.
        recipe: `tokens` are planned for one by one; its budgets are left out.
        progress: called with (targets done, targets in all, what).

    Raises:
        ModelError: the model cannot be read, or has no weight to plan.
        RecipeError: a target does not exist.
    """
    recipe = replace(recipe or CompileRecipe(), speedup=None, max_loss=None, sparsity=None)
    known = [parse(name) for name in targets]
    weights, structure = _weights(Path(model), masks, recipe)
    rows = []
    for done, target in enumerate(known, start=1):
        for tokens, _ in recipe.profile:
            rows.append(_row(weights, structure, recipe, target, tokens))
        if progress is not None:
            progress(done, len(known), "planning")
    return rows


def _row(
    weights: Weights, structure: Structure, recipe: CompileRecipe, target: Target, tokens: int
) -> WhatIf:
    cost = TimeCost(target, ((tokens, 1.0),))
    plan = plan_weights(weights, structure, recipe, cost)
    bill = of_plan(plan)
    dense = [cost.product(*weight.shape, sparse24=False) for weight in plan.weights]
    sparse = [
        cost.product(*weight.shape, sparse24=weight.shape[1] % 4 == 0)
        for weight in plan.weights
    ]
    return WhatIf(
        target.name,
        target.basis,
        target.estimate,
        tokens,
        not target.measured(tokens),
        dense_us=sum(dense),
        merged_us=_merged_us(plan, structure, cost),
        planned_us=bill.price(cost),
        everywhere_us=sum(sparse),
        products=len(bill.products),
        lowerings=dict(sorted(Counter(w.lowering for w in plan.weights).items())),
    )


def _merged_us(plan: Plan, structure: Structure, cost: TimeCost) -> float:
    shapes = {weight.weight: weight.shape for weight in plan.weights}
    total = 0.0
    for names in structure.siblings:
        met = [shapes.pop(name) for name in names if name in shapes]
        if met:
            total += cost.product(sum(n for n, _ in met), met[0][1], sparse24=False)
    return total + sum(cost.product(*shape, sparse24=False) for shape in shapes.values())


def named_targets(names: Sequence[str]) -> list[str]:
    """Spells out `all`, every GPU and dtype there is, and `a100`, every dtype of one."""
    known = {gpu: [f"{gpu}-{dtype}" for dtype in types] for gpu, types in available().items()}
    every = [name for several in known.values() for name in several]
    found: list[str] = []
    for name in names:
        found += every if name == "all" else known.get(name, [name])
    found = list(dict.fromkeys(found))
    files: dict[str, str] = {}
    for name in found:
        other = files.setdefault(Path(name).name, name)
        if other != name:
            raise RecipeError(
                f"targets | '{other}' and '{name}' are files of one name, which their rows go "
                "by; rename one"
            )
    return found


def _weights(
    model: Path, masks: str | Path | Masks | None, recipe: CompileRecipe
) -> tuple[Weights, Structure]:
    graph = load_model(model)
    weights: dict[str, Sequence[WeightMask]]
    if masks is not None:
        bindings, _, _ = bind_masks(graph, masks, recipe)
        sites = [binding.site for binding in bindings]
        weights = {binding.site.name: binding.masks for binding in bindings}
    else:
        inline(graph)
        sites = find_sites(graph)[0]
        weights = {site.name: (_all_sparse(site),) for site in sites}
    if not weights:
        raise ModelError(
            f"model '{model}' | has no MatMul or Gemm with a constant weight; inspect it"
        )
    return weights, find_structure(graph, sites)


def _all_sparse(site: Site) -> WeightMask:
    """A tile map of one 2:4 tile: no plan reads which weights stay."""

    def bits() -> NoReturn:
        raise InternalError(f"weight '{site.name}' | has no mask, and its bits were asked for")

    grid = Geometry(None, None).grid(site.weight.shape)
    return WeightMask(site.name, grid, np.zeros((1, 1), np.bool_), bits, geometry="weight")
