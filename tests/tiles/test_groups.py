"""Whatever is planned together costs no more than apart, and holds every weight."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patch_compile.recipe import CompileRecipe
from patch_compile.tiles.blocks import Block, Heads, Structure
from patch_compile.tiles.cost import Cost, MultiplyAdds
from patch_compile.tiles.groups import plan_weights
from patch_compile.tiles.operations import Operations, of_group, of_pieces
from patch_compile.tiles.plan import Plan
from patch_compile.tiles.planner import NO_BLOCK
from patch_compile.tiles.weight_mask import WeightMask
from tests.support import random_mask, random_weight

INNER, HIDDEN = 32, 16
BLOCK = Block(("g", "u"), "d", one_input=True)
STRUCTURE = Structure((BLOCK,), (("g", "u"), ("q", "k", "v")))
SHAPES = {
    "q": (24, HIDDEN),
    "k": (8, HIDDEN),
    "v": (8, HIDDEN),
    "g": (INNER, HIDDEN),
    "u": (INNER, HIDDEN),
    "d": (HIDDEN, INNER),
}

Masks = dict[str, list[WeightMask]]


@dataclass(frozen=True, kw_only=True)
class Slow(MultiplyAdds):
    """Every operation has a price of its own, as on a GPU."""

    launch: float
    move: float
    add: float

    def product(self, n: int, k: int, *, sparse24: bool) -> float:
        return self.launch + n * k * (0.5 if sparse24 else 1.0)

    def moved(self, features: int) -> float:
        return self.launch + self.move * features

    def added(self, features: int) -> float:
        return self.launch + self.add * features


prices = st.sampled_from([0.0, 1.0, 30.0, 1000.0])
costs = st.just(MultiplyAdds()) | st.builds(Slow, launch=prices, move=prices, add=prices)
tiles = st.sampled_from(["weight", "band:4", "band:8", "column:8", "8x8"])


@st.composite
def masks(draw: st.DrawFn) -> Masks:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    density = draw(st.sampled_from([0.0, 0.2, 0.6, 1.0]))
    return {
        name: [
            random_mask(
                rng, name, random_weight(rng, *shape), draw(tiles), density, with_digests=False
            )
        ]
        for name, shape in SHAPES.items()
        if draw(st.integers(0, 9))
    }


def bill(plan: Plan) -> Operations:
    plans = {weight.weight: weight for weight in plan.weights}
    total = Operations()
    for group in plan.groups:
        total += of_group(group, [plans.pop(name) for name in group.weights])
    for weight in plans.values():
        total += of_pieces(weight.shape, weight.pieces)
    return total


@given(masks(), costs)
def test_groups_never_cost_more_than_none(some: Masks, cost: Cost) -> None:
    recipe = CompileRecipe(min_gain=0.0)
    together = plan_weights(some, STRUCTURE, recipe, cost)
    apart = plan_weights(some, Structure(), recipe, cost)
    dense = sum(cost.product(*SHAPES[name], sparse24=False) for name in some)
    assert apart.groups == ()
    assert bill(together).price(cost) <= bill(apart).price(cost) <= dense
    assert Plan.from_json(together.to_json()) == together


@given(masks(), st.sampled_from(["auto", "merge", "branches", "sink-order"]))
def test_pieces_hold_every_weight_once_and_are_24_where_they_say(
    some: Masks, lowering: Any
) -> None:
    plan = plan_weights(some, STRUCTURE, CompileRecipe(lowering=lowering, min_gain=0.0))
    assert [weight.weight for weight in plan.weights] == list(some)
    for weight in plan.weights:
        (mask,) = some[weight.weight]
        times = np.zeros(mask.shape, np.int64)
        dense = mask.grid.expand(mask.dense)
        for piece in weight.pieces:
            rows, columns = (
                [i for span in spans for i in range(*span)]
                for spans in (piece.rows, piece.columns)
            )
            times[np.ix_(rows, columns)] += 1
            assert piece.role == "dense" or not dense[np.ix_(rows, columns)].any()
        np.testing.assert_array_equal(times, 1)


@given(masks(), costs)
def test_no_weight_is_in_two_groups(some: Masks, cost: Cost) -> None:
    plan = plan_weights(some, STRUCTURE, CompileRecipe(min_gain=0.0), cost)
    members = [name for group in plan.groups for name in group.weights]
    assert len(members) == len(set(members))


def tied(dense: list[bool], down: str = "column:8") -> Masks:
    rng = np.random.default_rng(0)
    made = {}
    for name in ("g", "u", "d"):
        tile = down if name == "d" else "band:8"
        array = np.array(dense)
        array = array[None] if name == "d" else array[:, None]
        array = np.array([[False]]) if tile == "weight" else array
        weight = random_weight(rng, *SHAPES[name])
        made[name] = [random_mask(rng, name, weight, tile, dense=array, with_digests=False)]
    return made


def test_tied_masks_become_branches() -> None:
    plan = plan_weights(tied([True, False, True, False]), STRUCTURE, CompileRecipe())
    (group,) = plan.groups
    assert (group.lowering, group.merged) == ("branches", True)
    assert {w.reason for w in plan.weights} == {
        "saves 25.0% of the multiply-adds of 3 weights"
    }


def test_whole_last_weight_takes_the_order() -> None:
    plan = plan_weights(tied([True, False, True, False], "weight"), STRUCTURE, CompileRecipe())
    (group,) = plan.groups
    assert group.lowering == "sink-order"
    assert plan.weights[-1].pieces[0].columns == ((0, 8), (16, 24), (8, 16), (24, 32))


def test_dear_sums_are_not_made() -> None:
    """Where an Add costs more than all products, branches do not pay."""
    some = tied([True, False, True, False])
    plan = plan_weights(
        some, STRUCTURE, CompileRecipe(min_gain=0.0), Slow(launch=0.0, move=0.0, add=1e9)
    )
    assert all(group.lowering != "branches" for group in plan.groups)


def test_dear_moves_leave_products_apart() -> None:
    some = tied([True, False, True, False])
    plan = plan_weights(
        some, STRUCTURE, CompileRecipe(min_gain=0.0), Slow(launch=0.0, move=1e9, add=0.0)
    )
    (group,) = plan.groups
    assert (group.lowering, group.merged) == ("branches", False)


@pytest.mark.parametrize("lowering", ["branches", "sink-order"])
def test_refusal_of_the_graph_is_the_reason(lowering: Any) -> None:
    structure = Structure((Block(("g", "u"), "d", True, "'v' is read by Neg"),))
    recipe = CompileRecipe(lowering=lowering)
    plan = plan_weights(tied([True, False, True, False]), structure, recipe)
    assert {w.reason for w in plan.weights} == {
        f"'{lowering}' was forced but 'v' is read by Neg"
    }


def test_gather_that_stays_says_why() -> None:
    refused = Structure((Block(("g", "u"), "d", True, "'v' is read by Neg"),))
    masks = tied([True, False, True, False])
    for structure, why in (
        (refused, "'v' is read by Neg"),
        (Structure(), NO_BLOCK),
    ):
        plan = plan_weights(masks, structure, CompileRecipe())
        assert plan.weights[0].lowering == "columns"
        assert plan.weights[0].reason.endswith(f"; a Gather restores the order: {why}")


def test_least_gain_keeps_a_block_apart() -> None:
    some = tied([True, False, True, False])
    assert plan_weights(some, STRUCTURE, CompileRecipe(min_gain=0.26)).groups == ()


def test_weight_between_two_blocks_goes_with_the_first() -> None:
    rng = np.random.default_rng(0)
    dense = np.array([True, False, True, False])
    some = {
        name: [
            random_mask(
                rng,
                name,
                random_weight(rng, 32, 32),
                tile,
                dense=dense[:, None] if tile == "band:8" else dense[None],
            )
        ]
        for name, tile in (("a", "band:8"), ("b", "column:8"), ("c", "column:8"))
    }
    structure = Structure((Block(("a",), "b", True), Block(("b",), "c", True)))
    plan = plan_weights(some, structure, CompileRecipe(lowering="branches"))
    assert [group.weights for group in plan.groups] == [("a", "b")]
    assert [weight.lowering for weight in plan.weights] == ["branches", "branches", "dense"]
    assert plan.weights[1].reason == "saves 25.0% of the multiply-adds of 2 weights"
    assert plan.weights[2].reason == "'branches' was forced but 'b' is in another group"


def test_odd_inner_axis_is_refused() -> None:
    rng = np.random.default_rng(0)
    shapes = {"g": (30, 16), "d": (16, 30)}
    some = {
        name: [random_mask(rng, name, random_weight(rng, *shape), "weight", 0.0)]
        for name, shape in shapes.items()
    }
    structure = Structure((Block(("g",), "d", True),))
    plan = plan_weights(some, structure, CompileRecipe(lowering="branches"))
    assert plan.weights[0].reason == (
        "'branches' was forced but in features 30 of 'd' are not a multiple of 4"
    )


def tied_heads(dense: list[bool]) -> tuple[Masks, Structure]:
    """Three groups of two query heads of 4 features."""
    rng = np.random.default_rng(0)
    array = np.array(dense)
    made = {}
    for name, shape, tile in (
        ("q", (24, HIDDEN), "band:8"),
        ("k", (12, HIDDEN), "band:4"),
        ("v", (12, HIDDEN), "band:4"),
        ("o", (HIDDEN, 24), "column:8"),
    ):
        tiles = array[None] if name == "o" else array[:, None]
        weight = random_weight(rng, *shape)
        made[name] = [random_mask(rng, name, weight, tile, dense=tiles, with_digests=False)]
    heads = Heads(groups=3, features=8, stacks=(1, 1, 1), kernels=3)
    block = Block(("q", "k", "v"), "o", one_input=True, attends=True, heads=heads)
    return made, Structure((block,), (("q", "k", "v"),))


def test_tied_heads_become_branches() -> None:
    some, structure = tied_heads([False, True, False])
    plan = plan_weights(some, structure, CompileRecipe())
    (group,) = plan.groups
    assert (group.lowering, group.merged, group.again) == ("branches", True, 3)
    assert plan.weights[1].pieces[0].rows == ((4, 8),)
    assert plan.weights[3].pieces[1].columns == ((0, 8), (16, 24))
    assert {w.reason for w in plan.weights} == {
        "saves 33.3% of the multiply-adds of 4 weights"
    }


def test_attention_that_is_dear_to_launch_twice_stays_whole() -> None:
    """Launches of products and of the attention may cost more than 2:4 saves."""
    some, structure = tied_heads([False, True, False])
    recipe = CompileRecipe(min_gain=0.0)
    for launch, wanted in ((1.0, "branches"), (1e5, None)):
        plan = plan_weights(some, structure, recipe, Slow(launch=launch, move=1.0, add=0.0))
        found = [group.lowering for group in plan.groups if group.lowering == "branches"]
        assert found == ([wanted] if wanted else [])


def test_a_share_of_heads_without_a_common_group_says_so() -> None:
    some, structure = tied_heads([False, True, False])
    other, _ = tied_heads([True, False, True])
    recipe = CompileRecipe(lowering="branches")
    plan = plan_weights({**some, "o": other["o"]}, structure, recipe)
    assert plan.weights[0].reason.startswith(
        "'branches' was forced but no group of heads is 2:4 in every weight"
    )
