"""Learning to a budget of predicted time."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from patch_compile.api import asked_masks
from patch_compile.errors import RecipeError
from patch_compile.learn.calibrate import Statistics
from patch_compile.learn.layout import layout
from patch_compile.learn.linears import prunable
from patch_compile.learn.model import LoadedModel
from patch_compile.learn.oneshot import rank_tiles
from patch_compile.learn.training.gate import Gate, Moment
from patch_compile.learn.training.learned import learn_gates
from patch_compile.learn.training.patterns import FixedPattern
from patch_compile.learn.training.schedule import Annealed
from patch_compile.learn.training.start import tiled_gates
from patch_compile.recipe import CompileRecipe, LearnRecipe
from patch_compile.tiles.cut import cut_masks
from patch_compile.tiles.masks import Masks
from patch_compile.tiles.operations import price
from patch_compile.tiles.planner import plan_weight
from patch_compile.tiles.promise import Promise
from patch_compile.tiles.time_cost import cost_of
from tests.learn.tiny import tiny_model
from tests.learn.training.taught import write_counting

# So many tokens that even 64 x 64 is twice as fast 2:4.
TARGET, TOKENS = "rtx4090-bf16", "16384"
TIMES = 1.2
SMALL: dict[str, Any] = {"samples": 4, "window": 16, "steps": 3, "holdout": 2}


@pytest.fixture
def model() -> LoadedModel:
    return tiny_model()


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_counting(tmp_path_factory.mktemp("text") / "text.txt", 60)


def _recipe(method: str, **options: Any) -> LearnRecipe:
    budget = f"time:{TIMES}x@{TARGET}:{TOKENS}"
    given = {"method": method, "tile": "weight", "budget": budget, **SMALL}
    return LearnRecipe(**{**given, **options})


def _planned(masks: Masks) -> float:
    """The planned time, as a share of the dense one."""
    recipe = CompileRecipe(target=TARGET, tokens=(TOKENS,))
    cost = cost_of(recipe, [mask.shape for mask in masks.weights.values()])
    assert cost is not None
    plans = [plan_weight(n, [m], recipe, cost) for n, m in masks.weights.items()]
    return sum(price(plan.shape, plan.pieces, cost) for plan in plans)


@pytest.mark.parametrize("method", ["wanda", "topk-ste", "patch-tile", "patch-joint"])
@pytest.mark.parametrize("tile", ["weight", "band:32", "column:32"])
def test_masks_are_as_fast_as_promised(
    method: str, tile: str, model: LoadedModel, text: Path, tmp_path: Path
) -> None:
    # A cut of so small a weight costs more than it saves: bands and columns go whole.
    recipe = _recipe(method, tile=tile)
    if recipe.learns:
        found = learn_gates(model, [text], recipe, tmp_path)
    else:
        (found,) = rank_tiles(model, [text], [recipe])
    (masks,) = asked_masks(found, recipe)
    assert _planned(masks) <= 1 / TIMES + 1e-9
    # The largest weight is 5 % of the time.
    assert _planned(masks) > 1 / TIMES - 0.06
    assert masks.made_by["budget"]["speedup"] == pytest.approx(1 / _planned(masks))
    # And on from there.
    less = cut_masks(masks, masks.sparsity / 2)
    assert less.sparsity < 0.8 * masks.sparsity
    for name, mask in less.weights.items():
        assert (mask.dense >= masks.weights[name].dense).all()


@pytest.mark.parametrize("tie", [("mlp",), ("heads",)])
def test_ties_keep_a_promise_too(
    tie: Any, model: LoadedModel, text: Path, tmp_path: Path
) -> None:
    recipe = _recipe("patch-joint", tie=tie, tie_block=172)
    (masks,) = asked_masks(learn_gates(model, [text], recipe, tmp_path), recipe)
    assert _planned(masks) <= 1 / TIMES + 1e-9


def _gates(model: LoadedModel, recipe: LearnRecipe) -> tuple[dict[str, Gate], Masks]:
    linears = prunable(model.module)
    rng = np.random.default_rng(0)
    fisher = {
        name: (rng.random() * rng.random(linear.shape)).astype(np.float32)
        for name, linear in linears.items()
    }
    flat = Annealed(1.0, 1.0)
    return tiled_gates(
        linears,
        Statistics({}, fisher),
        recipe,
        FixedPattern(),
        Moment(flat, flat),
        layout(model.module, linears, recipe),
    )


def test_gates_count_shares_of_time_and_start_at_the_promise(model: LoadedModel) -> None:
    recipe = _recipe("patch-tile", prior="magnitude")
    gates, prior = _gates(model, recipe)
    assert recipe.promise is not None
    shapes = [mask.shape for mask in prior.weights.values()]
    promise = Promise.of(recipe.promise, shapes)
    for name, gain in promise.gains(prior).items():
        torch.testing.assert_close(gates[name].gains, torch.from_numpy(gain).float())
    starts = {n: float(gate.logits.detach()) for n, gate in gates.items()}
    worth = {n: float(gate.gains) for n, gate in gates.items()}
    # By what a microsecond of each costs, and 0 where the promise is kept.
    prices = {}
    for name, mask in prior.weights.items():
        assert mask.scores is not None
        prices[name] = float(mask.scores[0, 0]) / worth[name]
    order = sorted(prices, key=lambda name: prices[name])
    assert order == sorted(starts, key=lambda name: starts[name])
    below = sum(worth[name] for name in order if starts[name] < 0)
    assert abs(below - promise.least) <= max(worth.values())
    assert min(abs(start) for start in starts.values()) == 0.0


def test_the_log_s_density_is_the_share_of_the_dense_time(
    model: LoadedModel, text: Path, tmp_path: Path
) -> None:
    recipe = _recipe("patch-tile", steps=2, checkpoint_every=1)
    learn_gates(model, [text], recipe, tmp_path)
    with (tmp_path / "log.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    # Two steps move no logit far: hard masks are those of the start, within a weight.
    assert float(rows[-1]["hard_density"]) == pytest.approx(1 / TIMES, abs=0.06)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": (0.3,)}, "budget | is given with sparsity (0.3,); choose one"),
        ({"method": "leap"}, "and zeros anywhere save no time"),
        ({"method": "wanda", "structure": "unstructured"}, "zeros anywhere save no time"),
        ({"method": "sparsegpt", "update": True}, "and --update needs a sparsity"),
    ],
)
def test_contradictions_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        _recipe(**{"method": "wanda", **options})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": "16x16"}, r"tile \| cuts a weight of \(64, 64\) into 4 x 4 tiles"),
        ({"budget": "time:3x@rtx4090-bf16:16384"}, r"with all weights 2:4 it is \d\.\d+x"),
    ],
)
def test_what_cannot_be_kept_is_told_before_anything_slow(
    options: Any, message: str, model: LoadedModel, tmp_path: Path
) -> None:
    nowhere = tmp_path / "no text"
    with pytest.raises(RecipeError, match=message):
        learn_gates(model, [nowhere], _recipe("patch-joint", **options), tmp_path)
    with pytest.raises(RecipeError, match=message):
        rank_tiles(model, [nowhere], [_recipe("wanda", **options)])
