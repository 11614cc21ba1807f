"""What 2:4 would buy on other GPUs and at other numbers of tokens; nothing is rewritten.

N: out features. K: in features.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from patch_compile.errors import ModelError
from patch_compile.io.onnx_model import load_model
from patch_compile.masking import bind_masks
from patch_compile.passes.pipeline import inline
from patch_compile.passes.sites import find_sites
from patch_compile.recipe import CompileRecipe
from patch_compile.targets.target import available, parse
from patch_compile.tiles.masks import Masks
from patch_compile.tiles.operations import price
from patch_compile.tiles.planner import plan_weight
from patch_compile.tiles.time_cost import TimeCost
from patch_compile.tiles.weight_mask import WeightMask

__all__ = ["WhatIf", "named_targets", "what_if"]

Shape = tuple[int, int]
Progress = Callable[[int, int, str], None]
# Of every weight its shape and masks; no masks stand for 2:4 everywhere.
_Weights = list[tuple[Shape, Sequence[WeightMask]]]


@dataclass(frozen=True)
class WhatIf:
    """Predictions for one target and one number of tokens; never measured.

    Attributes:
        target: GPU and dtype.
        basis: what the predictions rest on.
        estimate: nothing was measured on this GPU.
        tokens: of one run.
        dense_us: of all weights that could be cut, dense.
        planned_us: in the planner's pieces; without masks, each weight 2:4 where that is
            faster.
        everywhere_us: every weight 2:4, faster or not.
    """

    target: str
    basis: str
    estimate: bool
    tokens: int
    dense_us: float
    planned_us: float
    everywhere_us: float

    @property
    def speedup(self) -> float:
        """Of the planned model over the dense one."""
        return self.dense_us / self.planned_us

    def to_json(self) -> dict[str, Any]:
        """Returns every number by name."""
        return {**asdict(self), "speedup": self.speedup}


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
    recipe = replace(recipe or CompileRecipe(), speedup=None, max_loss=None)
    known = [parse(name) for name in targets]
    weights = _weights(Path(model), masks, recipe)
    rows = []
    for done, target in enumerate(known, start=1):
        for tokens, _ in recipe.profile:
            cost = TimeCost(target, ((tokens, 1.0),))
            times = [_times(shape, parts, recipe, cost) for shape, parts in weights]
            sums = (sum(column) for column in zip(*times, strict=True))
            rows.append(WhatIf(target.name, target.basis, target.estimate, tokens, *sums))
        if progress is not None:
            progress(done, len(known), "planning")
    return rows


def named_targets(names: Sequence[str]) -> list[str]:
    """Spells out `all`, every GPU and dtype there is, and `a100`, every dtype of one."""
    known = {gpu: [f"{gpu}-{dtype}" for dtype in types] for gpu, types in available().items()}
    every = [name for several in known.values() for name in several]
    found: list[str] = []
    for name in names:
        found += every if name == "all" else known.get(name, [name])
    return list(dict.fromkeys(found))


def _weights(model: Path, masks: str | Path | Masks | None, recipe: CompileRecipe) -> _Weights:
    graph = load_model(model)
    weights: _Weights
    if masks is not None:
        bindings, _, _ = bind_masks(graph, masks, recipe)
        parts = [binding.masks for binding in bindings]
        weights = [((sum(m.shape[0] for m in p), p[0].shape[1]), p) for p in parts]
    else:
        inline(graph)
        weights = [(site.weight.shape, ()) for site in find_sites(graph)[0]]
    if not weights:
        raise ModelError(
            f"model '{model}' | has no MatMul or Gemm with a constant weight; inspect it"
        )
    return weights


def _times(
    shape: Shape, masks: Sequence[WeightMask], recipe: CompileRecipe, cost: TimeCost
) -> tuple[float, float, float]:
    n, k = shape
    dense = cost.product(n, k, sparse24=False)
    sparse = cost.product(n, k, sparse24=True) if k % 4 == 0 else dense
    if not masks:
        return dense, min(dense, sparse), sparse
    plan = plan_weight("", masks, recipe, cost)
    return dense, price(shape, plan.pieces, cost), sparse
