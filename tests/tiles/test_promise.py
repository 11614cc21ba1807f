"""A promise of time is kept by the planner's own prices, and shared out among tiles."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patch_compile.errors import RecipeError
from patch_compile.recipe import CompileRecipe, promise_of
from patch_compile.tiles.geometry import Geometry
from patch_compile.tiles.masks import Masks
from patch_compile.tiles.operations import price
from patch_compile.tiles.planner import plan_weight
from patch_compile.tiles.promise import Promise, cut_in_time
from patch_compile.tiles.weight_mask import WeightMask
from tests.support import said

SHAPES = {"q": (2048, 2048), "up": (5632, 2048), "down": (2048, 5632), "tiny": (64, 2048)}
BUDGET = "time:1.15x@a100-bf16:2048"


def scored(tile: str, seed: int, shapes: dict[str, tuple[int, int]] = SHAPES) -> Masks:
    """Masks of which nothing but the tile maps and scores is read."""
    rng = np.random.default_rng(seed)
    masks = []
    for name, shape in shapes.items():
        grid = Geometry.parse(tile).grid(shape)
        scores = (rng.random(grid.tiles) ** 2 * grid.areas).astype(np.float32)
        dense = np.zeros(grid.tiles, np.bool_)
        masks.append(WeightMask(name, grid, dense, lambda: 1 / 0, scores, {}, tile))  # type: ignore[arg-type, return-value] # never called
    return Masks({mask.name: mask for mask in masks}, {"method": "none"})


def shares(masks: Masks, promise: Promise) -> dict[str, float]:
    """The planned time of every weight, of the time that all take dense."""
    recipe = CompileRecipe(target="a100-bf16", tokens=promise.recipe.tokens)
    plans = {
        name: plan_weight(name, [mask], recipe, promise.cost)
        for name, mask in masks.weights.items()
    }
    return {name: price(plan.shape, plan.pieces, promise.cost) for name, plan in plans.items()}


tiles = st.sampled_from(["weight", "band:512", "column:512"])
seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=12, deadline=None)
@given(tiles, seeds, st.sampled_from(["1.02x", "1.1x", "1.15x"]))
def test_the_plan_of_the_cut_is_as_fast_as_promised(
    tile: str, seed: int, speedup: str
) -> None:
    masks, recipe = scored(tile, seed), promise_of(f"time:{speedup}@a100-bf16:2048")
    cut = cut_in_time(masks, recipe)
    promise = Promise.of(recipe, SHAPES.values())
    planned = sum(shares(cut, promise).values())
    assert planned <= 1 / float(speedup[:-1]) + 1e-9
    facts = cut.made_by["budget"]
    assert facts["speedup"] == pytest.approx(1 / planned, rel=1e-6)
    assert (facts["asked"], facts["target"], facts["tokens"]) == (
        speedup, "a100-bf16", ["2048"],
    )  # fmt: skip
    assert cut.made_by["method"] == "none"


@settings(max_examples=12, deadline=None)
@given(tiles, seeds)
def test_gains_of_the_kept_tiles_add_up_to_what_the_plan_saves(tile: str, seed: int) -> None:
    masks, recipe = scored(tile, seed), promise_of(BUDGET)
    promise = Promise.of(recipe, SHAPES.values())
    gains, kept = promise.gains(masks), promise.keep(masks).masks
    planned = shares(Masks(kept), promise)
    whole = shares(masks, promise)
    for name, mask in masks.weights.items():
        gain, sparse = gains[name], ~kept[name].dense
        assert gain.shape == mask.dense.shape
        # By area: a smaller rest at the end gains less.
        per_area = gain / mask.grid.areas
        np.testing.assert_allclose(per_area, per_area[0, 0], rtol=1e-12)
        dense = promise.cost.product(*mask.shape, sparse24=False)
        saved = dense - (planned[name] if sparse.any() else whole[name])
        there = gain[sparse].sum() if sparse.any() else gain.sum()
        assert there == pytest.approx(max(saved, 0.0), abs=1e-9)


def test_a_weight_that_saves_nothing_gains_nothing() -> None:
    # 64 x 2048 at 2,048 tokens: too narrow for its 2:4 kernel.
    masks = scored("weight", 0)
    gains = Promise.of(promise_of(BUDGET), SHAPES.values()).gains(masks)
    assert gains["tiny"].tolist() == [[0.0]]
    assert all(gains[name].all() for name in ("q", "up", "down"))


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ("1.25x", "budget | is '1.25x'; expected time:TIMESx@TARGET:TOKENS, as in"),
        ("time:1.25x@a100-bf16", "budget | is 'time:1.25x@a100-bf16'; expected"),
        ("zeros:0.25", "budget | is 'zeros:0.25'; expected"),
        ("time:0.5x@a100-bf16:16", "speedup | is '0.5x'; expected a number of 1 or more"),
        ("time:1.2x@a100-bf16:many", "tokens | has 'many'; expected a number of tokens"),
    ],
)
def test_promises_of_another_form_are_refused(budget: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        promise_of(budget)
    assert said(caught).startswith(message)


def test_tokens_have_shares() -> None:
    found = promise_of("time:1.3@h100-bf16:16:0.9,2048:0.1")
    assert (found.times, found.target) == (1.3, "h100-bf16")
    assert found.profile == ((16, 0.9), (2048, 0.1))


@pytest.mark.parametrize(
    ("budget", "tile", "message"),
    [
        (BUDGET, "512x512", "tile | cuts a weight of (2048, 2048) into 4 x 4 tiles, and a"),
        ("time:3x@a100-bf16:2048", "weight", "budget | is 3x by the predicted time on a100"),
        ("time:1.1x@a100-bf16:1", "weight", "budget | is 1.1x by the predicted time on a100"),
        ("time:1.1x@c64-bf16:16", "weight", "target GPU 'c64' | is unknown; expected one of"),
    ],
)
def test_what_no_choice_could_keep_is_refused_from_shapes(
    budget: str, tile: str, message: str
) -> None:
    geometry: Any = Geometry.parse(tile)
    with pytest.raises(RecipeError) as caught:
        Promise.of(promise_of(budget), SHAPES.values()).check(
            geometry.grid(shape) for shape in SHAPES.values()
        )
    assert said(caught).startswith(message)
