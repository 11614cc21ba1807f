"""Gates start where one-shot statistics say, and tied tiles start as one."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from patch_compile.learn.calibrate import Statistics
from patch_compile.learn.layout import Layout, layout
from patch_compile.learn.linears import Linear, prunable
from patch_compile.learn.model import LoadedModel
from patch_compile.learn.obs import residuals
from patch_compile.learn.scores import SALIENCIES, Evidence
from patch_compile.learn.training.gate import Gate, Moment
from patch_compile.learn.training.noise import Draw
from patch_compile.learn.training.patterns import FixedPattern, NoPattern
from patch_compile.learn.training.schedule import Annealed
from patch_compile.learn.training.start import free_gates, tiled_gates
from patch_compile.recipe import LearnRecipe
from patch_compile.tiles.masks import Masks
from tests.learn.tiny import tiny_model

TIED: dict[str, Any] = {"tie": ("mlp",), "tie_block": 64, "tile": "weight"}
ONE = Annealed(1.0, 1.0)


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return tiny_model()


def _fisher(linears: dict[str, Linear]) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    return {
        name: (rng.random() * rng.random(linear.shape)).astype(np.float32)
        for name, linear in linears.items()
    }


def _recipe(**options: Any) -> LearnRecipe:
    return LearnRecipe(**{"method": "patch-tile", "prior": "magnitude", **options})


def _start(
    model: LoadedModel, recipe: LearnRecipe
) -> tuple[dict[str, Gate], Masks, dict[str, Layout]]:
    linears = prunable(model.module)
    layouts = layout(model.module, linears, recipe)
    moment = Moment(ONE, ONE)
    statistics = Statistics({}, _fisher(linears))
    gates, prior = tiled_gates(linears, statistics, recipe, FixedPattern(), moment, layouts)
    return gates, prior, layouts


def _costs(model: LoadedModel, layouts: dict[str, Layout]) -> dict[Any, tuple[float, int]]:
    """Fisher cost and size of every tile, or of all that it is tied to, by plain sums."""
    linears = prunable(model.module)
    costs: dict[Any, tuple[float, int]] = {}
    for name, fisher in _fisher(linears).items():
        weight, cut = linears[name].array().astype(np.float64), layouts[name]
        groups = np.abs(weight).reshape(weight.shape[0], -1, 4)
        goes = (groups.argsort(2).argsort(2) < 2).reshape(weight.shape)
        lost = np.where(goes, fisher * weight**2, 0.0)
        for r, c in np.ndindex(cut.grid.tiles):
            rows, columns = cut.grid.rows[r : r + 2], cut.grid.columns[c : c + 2]
            tile = lost[slice(*rows), slice(*columns)]
            key = (name, r, c) if cut.ties is None else int(cut.ties[r, c])
            cost, size = costs.get(key, (0.0, 0))
            costs[key] = cost + float(tile.sum()), size + tile.size
    return costs


def _logits(gates: dict[str, Gate], layouts: dict[str, Layout]) -> dict[Any, set[float]]:
    """The logits of every tile, or of all that it is tied to."""
    found: dict[Any, set[float]] = {}
    for name, gate in gates.items():
        ties = layouts[name].ties
        for (r, c), logit in np.ndenumerate(gate.logits.detach().numpy()):
            key = (name, r, c) if ties is None else int(ties[r, c])
            found.setdefault(key, set()).add(float(logit))
    return found


@pytest.mark.parametrize("options", [TIED, {"tile": "band:24"}], ids=["tied", "bands"])
@pytest.mark.parametrize("sparsity", [0.1, 0.25, 0.4])
def test_logits_rise_with_the_cost_per_zero_and_part_at_the_budget(
    model: LoadedModel, options: dict[str, Any], sparsity: float
) -> None:
    gates, _, layouts = _start(model, _recipe(sparsity=(sparsity,), **options))
    logits, costs = _logits(gates, layouts), _costs(model, layouts)
    assert logits.keys() == costs.keys()
    assert all(len(values) == 1 for values in logits.values())
    keys = sorted(costs, key=lambda key: costs[key][0] / costs[key][1])
    ordered = [min(logits[key]) for key in keys]
    assert ordered == sorted(ordered)
    below = sum(costs[key][1] for key in keys if min(logits[key]) < 0)
    total = sum(size for _, size in costs.values())
    largest = max(size for _, size in costs.values())
    # The tile at the threshold itself is at 0.
    assert abs(below - 2 * sparsity * total) <= largest
    # log of a price in a unit: equal ratios of prices are equal steps.
    prices = np.log([costs[key][0] / costs[key][1] for key in keys])
    slope, _ = np.polyfit(prices, ordered, 1)
    # Float32 sums of some thousand squares, against float64.
    np.testing.assert_allclose(np.diff(ordered), slope * np.diff(prices), atol=1e-5)


def test_logits_by_cost_spread_like_patch_s_prior(model: LoadedModel) -> None:
    gates, _, _ = _start(model, _recipe(tile="band:24"))
    every = np.concatenate([gate.logits.detach().numpy().ravel() for gate in gates.values()])
    # 3 x 0.014; float32.
    assert every.std() == pytest.approx(0.042, rel=1e-3)


def test_random_start_is_small_noise_that_a_seed_repeats(model: LoadedModel) -> None:
    options: dict[str, Any] = {"tile": "4x4", "tile_start": "random"}
    gates, _, _ = _start(model, _recipe(**options))
    again, _, _ = _start(model, _recipe(**options))
    other, _, _ = _start(model, _recipe(**options, seed=1))
    every = np.concatenate([gate.logits.detach().numpy().ravel() for gate in gates.values()])
    # Some 6,000 samples: both deviations are below 4 standard errors.
    assert every.std() == pytest.approx(0.014, rel=0.04)
    assert abs(every.mean()) < 0.014 * 0.06
    for name, gate in gates.items():
        assert torch.equal(gate.tiles, again[name].tiles)
        assert not torch.equal(gate.tiles, other[name].tiles)
    # Weights of one shape draw noise of their own.
    layers = [gates[f"model.layers.{i}.mlp.up_proj.weight"] for i in range(2)]
    assert not torch.equal(layers[0].tiles, layers[1].tiles)


def test_random_start_of_tied_tiles_is_one_and_of_others_another(model: LoadedModel) -> None:
    gates, _, layouts = _start(model, _recipe(**TIED, tile_start="random"))
    logits = _logits(gates, layouts)
    assert all(len(values) == 1 for values in logits.values())
    assert len(set.union(*logits.values())) == len(logits)


def test_tied_weights_share_one_parameter_for_each_mlp(model: LoadedModel) -> None:
    gates, _, layouts = _start(model, _recipe(**TIED))
    for layer in range(2):
        mlp = f"model.layers.{layer}.mlp"
        members = [gates[f"{mlp}.{n}_proj.weight"] for n in ("gate", "up", "down")]
        assert len({id(gate.tiles) for gate in members}) == 1
        assert members[0].tiles.shape == (3,)
    tied = sum(layouts[name].ties is not None for name in gates)
    assert len({id(gate.tiles) for gate in gates.values()}) == len(gates) - tied + 2


def test_tied_gates_draw_the_same_tiles(model: LoadedModel) -> None:
    gates, _, layouts = _start(model, _recipe(**TIED))
    samples: dict[int, set[float]] = {}
    for name, gate in gates.items():
        gate.moment.draw = Draw(0, 7, 0)
        ties = layouts[name].ties
        if ties is not None:
            drawn = gate.drawn(gate.logits)[0].detach().numpy()
            for number, value in zip(ties.flat, drawn.flat, strict=True):
                samples.setdefault(int(number), set()).add(float(value))
    assert all(len(values) == 1 for values in samples.values())
    assert len(set.union(*samples.values())) == len(samples) == 6


@pytest.mark.parametrize("options", [TIED, {"tile": "weight"}], ids=["tied", "weights"])
def test_set_tiles_are_the_one_shot_choice_and_wholly_dense_weights_have_no_gate(
    model: LoadedModel, options: dict[str, Any]
) -> None:
    recipe = _recipe(method="topk-ste", sparsity=(0.2,), **options)
    gates, prior, layouts = _start(model, recipe)
    costs = _costs(model, layouts)
    price = {key: cost / size for key, (cost, size) in costs.items()}
    chosen: dict[bool, list[float]] = {True: [], False: []}
    for name in prior.weights:
        ties, gate = layouts[name].ties, gates.get(name)
        for r, c in np.ndindex(layouts[name].grid.tiles):
            dense = True if gate is None or gate.dense is None else bool(gate.dense[r, c])
            chosen[dense].append(price[(name, r, c) if ties is None else int(ties[r, c])])
    assert max(chosen[False]) <= min(chosen[True])
    assert 0 < len(gates) < len(prior.weights)
    assert not any(gate.learns_tiles for gate in gates.values())
    assert not any(gate.dense.all() for gate in gates.values() if gate.dense is not None)


def test_prior_is_all_24_with_layouts_and_scores(model: LoadedModel) -> None:
    gates, prior, layouts = _start(model, _recipe(**TIED))
    assert list(gates) == list(prior.weights) == list(prunable(model.module))
    for name, mask in prior.weights.items():
        assert mask.geometry == layouts[name].geometry
        assert (mask.ties is None) == (layouts[name].ties is None)
        assert mask.zeros() * 2 == mask.shape[0] * mask.shape[1]
        assert np.array_equal(mask.keep(), gates[name].stored.numpy())


@pytest.mark.parametrize("sparsity", [0.3, 0.7])
def test_leap_starts_each_row_at_the_prior_s_choice(
    model: LoadedModel, sparsity: float
) -> None:
    linears = prunable(model.module)
    recipe = _recipe(method="leap", sparsity=(sparsity,))
    gates = free_gates(linears, Statistics({}, {}), recipe, NoPattern(), Moment(ONE, ONE))
    for name, linear in linears.items():
        logits = gates[name].logits.detach().numpy()
        lost = round(sparsity * linear.shape[1])
        least = np.argsort(np.abs(linear.array()), axis=1)[:, :lost]
        side = np.full(linear.shape, 0.042)
        np.put_along_axis(side, least, -0.042, axis=1)
        # What is left is N(0, 0.014): 6 deviations.
        assert np.abs(logits - side).max() < 6 * 0.014
        assert (logits - side).std() == pytest.approx(0.014, rel=0.1)
        assert gates[name].learns_tiles


def test_leap_starts_at_a_sparsegpt_that_knows_no_groups(model: LoadedModel) -> None:
    linears = prunable(model.module)
    recipe = _recipe(method="leap", sparsity=(0.4,), prior="sparsegpt")
    rng = np.random.default_rng(0)
    inputs = {name: rng.standard_normal((300, w.shape[1])) for name, w in linears.items()}
    grams = {name: (x.T @ x).astype(np.float32) for name, x in inputs.items()}
    statistics = Statistics(grams=dict(grams))
    gates = free_gates(linears, statistics, recipe, NoPattern(), Moment(ONE, ONE))
    for name, linear in linears.items():
        # Of each row the cheapest by |w| r, w where it is before any other weight goes.
        cost = np.abs(linear.array()) * residuals(grams[name])
        lost = cost.argsort(axis=1).argsort(axis=1) < round(0.4 * linear.shape[1])
        # The start is 3 deviations of its noise away from 0: 0.13 % land on the other side.
        assert ((gates[name].logits.detach().numpy() < 0) == lost).mean() > 0.99
        moved = SALIENCIES["sparsegpt"](Evidence(linear.array(), gram=grams[name]))
        grouped = moved.argsort(axis=1).argsort(axis=1) < round(0.4 * linear.shape[1])
        assert (grouped == lost).mean() < 0.98


@pytest.mark.parametrize("method", ["topk-ste", "patch-tile", "leap"])
def test_of_several_sparsities_learning_starts_at_the_largest(
    model: LoadedModel, method: str
) -> None:
    one, several = (
        _start(model, _recipe(method=method, sparsity=sparsity))[0]
        for sparsity in ((0.4,), (0.2, 0.4, 0.3))
    )
    assert list(one) == list(several)
    for name, gate in one.items():
        assert torch.equal(gate.logits, several[name].logits)
        dense, also = gate.dense, several[name].dense
        assert (dense is None) == (also is None)
        if dense is not None and also is not None:
            assert torch.equal(dense, also)
