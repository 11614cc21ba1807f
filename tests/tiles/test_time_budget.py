"""Budgets of time: met, at the least loss, as brute force finds it."""

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patch_compile.errors import MaskError, RecipeError
from patch_compile.recipe import CompileRecipe
from patch_compile.tiles.blocks import Block, Structure
from patch_compile.tiles.cost import MultiplyAdds
from patch_compile.tiles.geometry import Geometry
from patch_compile.tiles.groups import plan_weights
from patch_compile.tiles.menus import Option
from patch_compile.tiles.operations import of_plan, price
from patch_compile.tiles.planner import plan_weight
from patch_compile.tiles.time_budget import choose, meet_budget
from patch_compile.tiles.time_cost import TimeCost, cost_of
from patch_compile.tiles.weight_mask import WeightMask
from tests.support import random_mask, random_weight

SHAPE = (4096, 1024)


def scored(
    name: str, tile: str, scores: Any, ties: Any = None, dense: Any = None
) -> WeightMask:
    rng = np.random.default_rng(0)
    grid = Geometry.parse(tile).grid(SHAPE)
    scores = np.asarray(scores, np.float32).reshape(grid.tiles)
    kept = np.zeros(grid.tiles, np.bool_) if dense is None else np.asarray(dense)
    bits = random_mask(rng, name, random_weight(rng, *SHAPE), grid, dense=kept).bits()
    return WeightMask(name, grid, kept, lambda: bits, scores, {}, tile, ties)


def costs(recipe: CompileRecipe, count: int) -> TimeCost:
    cost = cost_of(recipe, [SHAPE] * count)
    assert cost is not None
    return cost


def time_of(masks: dict[str, WeightMask], recipe: CompileRecipe, cost: TimeCost) -> float:
    plans = [plan_weight(name, [mask], recipe, cost) for name, mask in masks.items()]
    return sum(price(plan.shape, plan.pieces, cost) for plan in plans)


def lost(masks: dict[str, WeightMask]) -> float:
    return sum(float(m.scores[~m.dense].sum()) for m in masks.values() if m.scores is not None)


seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=3)
@given(seeds, st.sampled_from(["1.05x", "1.15x", "1.2x"]))
def test_least_loss_for_a_speedup_is_that_of_every_choice_of_bands(
    seed: int, speedup: str
) -> None:
    """Brute force over every tile map there is, priced by the planner itself."""
    rng = np.random.default_rng(seed)
    recipe = CompileRecipe(target="a100-bf16", tokens=("2048",), speedup=speedup, min_gain=0.0)
    # Scores that fall along N: the best bands lie together, as prefixes by score do.
    weights = {n: scored(n, "band:1024", np.sort(rng.random(4))) for n in ("a", "b")}
    cost = costs(recipe, 2)
    found = meet_budget({n: [m] for n, m in weights.items()}, Structure(), recipe, cost)
    best = float("inf")
    for chosen in product(product([False, True], repeat=4), repeat=2):
        trial = {
            n: replace(m, dense=np.array(dense)[:, None])
            for (n, m), dense in zip(weights.items(), chosen, strict=True)
        }
        if time_of(trial, recipe, cost) <= 1 / float(speedup[:-1]) + 1e-9:
            best = min(best, lost(trial))
    assert found.loss == pytest.approx(best, rel=1e-6)
    assert found.gap == 0
    assert lost(dict(found.masks)) == pytest.approx(found.loss)
    assert time_of(dict(found.masks), recipe, cost) <= 1 / float(speedup[:-1]) + 1e-6


@settings(max_examples=15)
@given(seeds)
def test_the_choice_of_options_is_that_of_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    menu = [
        [
            Option(0.0, 0.0, 0, {}),
            *(
                Option(float(gain), float(loss), 0, {})
                for gain, loss in rng.random((rng.integers(1, 5), 2))
            ),
        ]
        for _ in range(4)
    ]
    every = [
        (sum(o.gain for o in picked), sum(o.loss for o in picked)) for picked in product(*menu)
    ]
    budget = float(rng.random()) * max(gain for gain, _ in every)
    by_gain, _ = choose(menu, least_gain=budget)
    wanted = min(loss for gain, loss in every if gain >= budget)
    assert sum(o.loss for o in by_gain) == pytest.approx(wanted, abs=1e-6)
    by_loss, _ = choose(menu, most_loss=budget)
    wanted = max(gain for gain, loss in every if loss <= budget)
    assert sum(o.gain for o in by_loss) == pytest.approx(wanted, abs=1e-6)
    assert len(by_gain) == len(by_loss) == 4


@pytest.mark.parametrize("tile", ["weight", "band:1024", "column:256", "1024x256"])
def test_more_loss_buys_more_time(tile: str) -> None:
    rng = np.random.default_rng(1)
    tiles = Geometry.parse(tile).grid(SHAPE).tiles
    weights = {n: [scored(n, tile, rng.random(tiles))] for n in "abcd"}
    gains = []
    for share in (0.0, 0.3, 1.0):
        most = share * sum(
            float(m.scores.sum()) for (m,) in weights.values() if m.scores is not None
        )
        recipe = CompileRecipe(
            target="a100-bf16", tokens=("2048",), max_loss=most + 1e-6, min_gain=0.0
        )
        cost = costs(recipe, 4)
        found = meet_budget(weights, Structure(), recipe, cost)
        assert found.loss <= most + 1e-5
        saved = 1 - time_of(dict(found.masks), recipe, cost)
        assert saved >= found.gain - 1e-9
        gains.append(found.gain)
    assert gains[0] == 0
    assert gains[0] < gains[2]
    assert gains == sorted(gains)


def test_tied_tiles_stay_together() -> None:
    ties = np.arange(4, dtype=np.int32)[:, None]
    # Alone, each weight would keep three bands; together, the two that both can afford.
    scores = {"gate": [1.0, 1, 1, 9], "up": [1.0, 1, 9, 1]}
    weights = {n: [scored(n, "band:1024", s, ties)] for n, s in scores.items()}
    recipe = CompileRecipe(target="a100-bf16", tokens=("8192",), max_loss=7.0, min_gain=0.0)
    found = meet_budget(weights, Structure(), recipe, MultiplyAdds())
    maps = [mask.dense.ravel().tolist() for mask in found.masks.values()]
    assert maps[0] == maps[1]
    assert maps[0] == [False, False, True, True]


def test_a_tile_that_is_dense_stays_dense() -> None:
    dense = np.array([[True], [False], [False], [False]])
    weights = {"w": [scored("w", "band:1024", [0.0, 1, 1, 1], dense=dense)]}
    recipe = CompileRecipe(target="a100-bf16", tokens=("2048",), max_loss=1e6, min_gain=0.0)
    found = meet_budget(weights, Structure(), recipe, MultiplyAdds()).masks["w"]
    assert found.dense[0, 0]
    assert not found.dense[1:].any()
    found.check()


def test_a_tile_made_dense_keeps_all_its_weights() -> None:
    weights = {"w": [scored("w", "band:1024", [1.0, 1, 1, 9])]}
    recipe = CompileRecipe(target="a100-bf16", tokens=("2048",), max_loss=3.5, min_gain=0.0)
    found = meet_budget(weights, Structure(), recipe, MultiplyAdds()).masks["w"]
    assert found.dense.ravel().tolist() == [False, False, False, True]
    keep = found.keep()
    assert keep[3072:].all()
    assert keep[:3072].mean() <= 0.5
    found.check()


def test_a_speedup_out_of_reach_says_what_is() -> None:
    weights = {"w": [scored("w", "weight", [1.0])]}
    recipe = CompileRecipe(target="a100-bf16", tokens=("2048",), speedup="3x")
    with pytest.raises(
        RecipeError, match=r"speedup \| is '3x', and these masks allow 1\.\d+x at"
    ):
        meet_budget(weights, Structure(), recipe, costs(recipe, 1))


def test_masks_without_scores_are_refused() -> None:
    mask = scored("w", "weight", [1.0])
    bare = WeightMask("w", mask.grid, mask.dense, mask.bits)
    recipe = CompileRecipe(target="a100-bf16", speedup="1.1x")
    with pytest.raises(MaskError, match=r"weight 'w' \| has no scores"):
        meet_budget({"w": [bare]}, Structure(), recipe, costs(recipe, 1))


# Weights that meet: q, k and v share X, an MLP is cut at one index.
INNER, HIDDEN = 2048, 1024
MEETING = {
    "q": (HIDDEN, HIDDEN),
    "k": (HIDDEN, HIDDEN),
    "g": (INNER, HIDDEN),
    "u": (INNER, HIDDEN),
    "d": (HIDDEN, INNER),
}
STRUCTURE = Structure((Block(("g", "u"), "d", one_input=True),), (("q", "k"), ("g", "u")))


def meeting(seed: int, tile: str) -> dict[str, list[WeightMask]]:
    """All 2:4, with random scores; tied along the inner axis for `tied`, else apart."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, shape in MEETING.items():
        tied = tile == "tied" and name in "gud"
        form = ("column:512" if name == "d" else "band:512") if tied else tile
        grid = Geometry.parse("weight" if form == "tied" else form).grid(shape)
        ties = np.arange(4, dtype=np.int32).reshape(grid.tiles) if tied else None
        scores = rng.random(grid.tiles).astype(np.float32)
        dense = np.zeros(grid.tiles, np.bool_)
        found[name] = [WeightMask(name, grid, dense, no_bits, scores, {}, form, ties)]
    return found


def no_bits() -> Any:
    raise AssertionError("a plan read the keep bits")


def planned(weights: dict[str, Any], recipe: CompileRecipe, cost: TimeCost) -> float:
    return of_plan(plan_weights(weights, STRUCTURE, recipe, cost)).price(cost)


def with_maps(weights: dict[str, list[WeightMask]], maps: Any) -> dict[str, list[WeightMask]]:
    return {n: [replace(m, dense=maps[n])] for n, (m,) in weights.items()}


@settings(max_examples=20)
@given(
    seeds,
    st.sampled_from(["weight", "band:256", "column:256", "512x256", "tied", "band:100"]),
    st.sampled_from([("2048",), ("256",), ("16:0.5", "2048:0.5")]),
    st.sampled_from([0.0, 0.05]),
    st.sampled_from([0.2, 0.7]),
)
def test_what_a_budget_promises_is_what_the_plan_of_the_whole_model_saves(
    seed: int, tile: str, tokens: tuple[str, ...], min_gain: float, share: float
) -> None:
    weights = meeting(seed, tile)
    scores = sum(float(m.scores.sum()) for (m,) in weights.values() if m.scores is not None)
    recipe = CompileRecipe(
        target="a100-bf16", tokens=tokens, min_gain=min_gain, max_loss=share * scores
    )
    cost = cost_of(recipe, MEETING.values())
    assert cost is not None
    found = meet_budget(weights, STRUCTURE, recipe, cost)
    assert found.loss <= share * scores * (1 + 1e-6)
    assert lost(dict(found.masks)) == pytest.approx(found.loss, abs=1e-6)
    maps = {name: mask.dense for name, mask in found.masks.items()}
    saved = 1 - planned(with_maps(weights, maps), recipe, cost)
    assert saved == pytest.approx(found.gain, abs=1e-9)


@settings(max_examples=4)
@given(
    seeds, st.sampled_from(["1.05x", "1.15x", "1.25x"]), st.sampled_from(["weight", "tied"])
)
def test_least_loss_of_weights_that_meet_is_that_of_every_choice(
    seed: int, speedup: str, tile: str
) -> None:
    """Brute force over whole weights, or over tied blocks with whole q and k."""
    weights = meeting(seed, tile)
    if tile == "tied":
        # Scores that rise along the axis: the best blocks are prefixes, as options are.
        for name in "gud":
            (mask,) = weights[name]
            assert mask.scores is not None
            ranked = np.sort(mask.scores.ravel()).reshape(mask.scores.shape)
            weights[name] = [replace(mask, scores=ranked)]
    recipe = CompileRecipe(target="a100-bf16", tokens=("2048",), speedup=speedup, min_gain=0.0)
    cost = cost_of(recipe, MEETING.values())
    assert cost is not None
    assert recipe.times is not None
    found = meet_budget(weights, STRUCTURE, recipe, cost)
    best = float("inf")
    for maps in every_choice(weights, tile):
        trial = with_maps(weights, maps)
        if planned(trial, recipe, cost) <= 1 / recipe.times + 1e-9:
            best = min(best, lost({name: mask for name, (mask,) in trial.items()}))
    assert found.loss == pytest.approx(best, rel=1e-6)
    assert found.gap == 0


def every_choice(weights: dict[str, list[WeightMask]], tile: str) -> Any:
    free = list(MEETING) if tile == "weight" else ["q", "k"]
    for taken in product([False, True], repeat=len(free)):
        maps = {n: np.array([[t]]) for n, t in zip(free, taken, strict=True)}
        if tile == "weight":
            yield maps
            continue
        for blocks in product([False, True], repeat=4):
            tied = {n: np.reshape(blocks, weights[n][0].dense.shape) for n in "gud"}
            yield maps | tied


@pytest.mark.parametrize("tile", ["weight", "band:256", "tied"])
def test_zeros_of_a_sparsity_count_where_they_save_time(tile: str) -> None:
    weights = meeting(3, tile)
    recipe = CompileRecipe(target="a100-bf16", tokens=("2048",), sparsity=0.3, min_gain=0.0)
    cost = cost_of(recipe, MEETING.values())
    assert cost is not None
    found = meet_budget(weights, STRUCTURE, recipe, cost)
    area = sum(n * k for n, k in MEETING.values())
    zeros = sum(int(m.grid.areas[~m.dense].sum()) // 2 for m in found.masks.values())
    assert 0.3 * area - 1 <= zeros < 0.45 * area
    assert found.gain > 0.02


def test_a_sparsity_that_buys_no_time_says_what_does() -> None:
    weights = meeting(0, "weight")
    recipe = CompileRecipe(target="h100-bf16", tokens=("64",), sparsity=0.3)
    cost = cost_of(recipe, MEETING.values())
    assert cost is not None
    with pytest.raises(
        RecipeError, match=r"sparsity \| is 30.00%, and these masks have 0.00% where a plan"
    ):
        meet_budget(weights, STRUCTURE, recipe, cost)
