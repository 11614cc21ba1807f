"""Against the papers' equations with autograd over whole masks, in tests/.../plain.py."""

import itertools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from patch_compile.learn.training import gate as gate_module
from patch_compile.learn.training.gate import Gate, Moment, Pull, Tied, parameters_of
from patch_compile.learn.training.noise import Draw, gumbel, logistic
from patch_compile.learn.training.patterns import (
    FixedPattern,
    GumbelPattern,
    NoPattern,
    TopTwoPattern,
)
from patch_compile.learn.training.schedule import Annealed
from patch_compile.tiles.geometry import Geometry, TileGrid
from tests.learn.training import plain
from tests.learn.training.products import masked

SHAPE = (22, 36)
TILE, PATTERN = Annealed(0.7, 30.0), Annealed(1.3, 80.0)
DRAW = Draw(seed=3, step=5, slot=1)
PULL = Pull(budget=0.21, norm=0.37)

# Sums of a few hundred float32 products in another order.
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}


@dataclass
class Case:
    """A gate, a weight, and a gradient of its output."""

    gate: Gate
    weight: Tensor
    grad: Tensor

    def run(self) -> Tensor:
        found = masked(self.gate, self.weight)
        self.gate.pull = PULL
        torch.autograd.backward(found, self.grad)
        return found.detach()

    @property
    def noise(self) -> tuple[Tensor, Tensor]:
        device = torch.device("cpu")
        name = self.gate.name
        tiles = logistic(self.gate.tiles.shape, DRAW.generator(f"{name}/tiles", device))
        return tiles, gumbel(self.gate.stored.shape, DRAW.generator(f"{name}/pattern", device))


def _case(pattern: Any, tile: str | TileGrid = "5x8", *, dense: Tensor | None = None) -> Case:
    seeded = torch.Generator().manual_seed(0)
    weight = torch.randn(SHAPE, generator=seeded)
    grid = tile if isinstance(tile, TileGrid) else Geometry.parse(tile).grid(SHAPE)
    tiles = 0.05 * torch.randn(grid.tiles, generator=seeded)
    moment = Moment(TILE, PATTERN, DRAW)
    stored = pattern.start(weight.abs(), seeded)
    gate = Gate("w", grid, pattern, moment, tiles=tiles, stored=stored, dense=dense)
    return Case(gate, weight, torch.randn(SHAPE, generator=seeded))


def _expected(case: Case, mask: Tensor) -> Tensor:
    """Runs the plain objective backward: the loss's part, that of sum M, norm / 2 |W M|^2."""
    product = case.weight * mask
    loss = (product * case.grad).sum() + PULL.budget * mask.sum()
    torch.autograd.backward(loss - PULL.norm / 2 * product.square().sum())
    return product.detach()


def _leaf(parameter: Tensor) -> Tensor:
    return parameter.detach().clone().requires_grad_()


@pytest.fixture(params=[2**17, 80], ids=["one slice", "slices of two rows"])
def slices(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gate_module._SLICE, "cpu", request.param)


@pytest.mark.usefixtures("slices")
@pytest.mark.parametrize("tile", ["5x8", "band:5", "column:8", "weight", "1x4"])
def test_patch_joint_has_the_paper_s_gradients(tile: str) -> None:
    case = _case(GumbelPattern(), tile)
    height, width = case.gate.grid.rows[1], case.gate.grid.columns[1]
    tiles, stored = _leaf(case.gate.tiles), _leaf(case.gate.stored)
    noise, gumbels = case.noise
    density = plain.soft_tiles(tiles, 0.0, noise, TILE.temperature, TILE.scale)
    pattern = plain.soft_pattern(stored, gumbels, PATTERN.temperature, PATTERN.scale)
    mask = plain.merged(plain.expand(density, height, width, SHAPE), pattern)
    product = _expected(case, mask)
    torch.testing.assert_close(case.run(), product, **CLOSE)
    torch.testing.assert_close(case.gate.tiles.grad, tiles.grad, **CLOSE)
    torch.testing.assert_close(case.gate.stored.grad, stored.grad, **CLOSE)
    kept = mask.numel() - float(case.gate.gained)
    assert kept == pytest.approx(float(mask.detach().sum()), rel=1e-5)
    assert float(case.gate.norm) == pytest.approx(float(product.square().sum()), rel=1e-5)


@pytest.mark.usefixtures("slices")
def test_patch_tile_has_the_paper_s_gradients() -> None:
    case = _case(FixedPattern())
    tiles = _leaf(case.gate.tiles)
    density = plain.soft_tiles(tiles, 0.0, case.noise[0], TILE.temperature, TILE.scale)
    mask = plain.merged(plain.expand(density, 5, 8, SHAPE), case.gate.stored.float())
    product = _expected(case, mask)
    torch.testing.assert_close(case.run(), product, **CLOSE)
    torch.testing.assert_close(case.gate.tiles.grad, tiles.grad, **CLOSE)
    assert case.gate.stored.grad is None


def test_leap_is_tiles_of_one_weight_over_nothing() -> None:
    grid = TileGrid(tuple(range(SHAPE[0] + 1)), tuple(range(SHAPE[1] + 1)))
    case = _case(NoPattern(), grid)
    tiles = _leaf(case.gate.tiles)
    mask = plain.soft_tiles(tiles, 0.0, case.noise[0], TILE.temperature, TILE.scale)
    product = _expected(case, mask)
    torch.testing.assert_close(case.run(), product, **CLOSE)
    torch.testing.assert_close(case.gate.tiles.grad, tiles.grad, **CLOSE)


def test_a_budget_of_another_unit_asks_its_own_price_of_every_tile() -> None:
    case = _case(FixedPattern())
    gate = case.gate
    prices = torch.rand(gate.grid.tiles, generator=torch.Generator().manual_seed(1))
    case.gate = Gate(
        "w", gate.grid, gate.pattern, gate.moment,
        tiles=gate.tiles.detach(), stored=gate.stored.detach(), gains=prices,
    )  # fmt: skip
    tiles = _leaf(gate.tiles)
    density = plain.soft_tiles(tiles, 0.0, case.noise[0], TILE.temperature, TILE.scale)
    case.grad.zero_()
    torch.autograd.backward(PULL.budget * (density * prices).sum())
    masked(case.gate, case.weight)
    case.gate.pull = Pull(budget=PULL.budget)
    torch.autograd.backward(masked(case.gate, case.weight), case.grad)
    torch.testing.assert_close(case.gate.tiles.grad, tiles.grad, **CLOSE)
    spared = float(((1 - density.detach()) * prices).sum())
    assert float(case.gate.gained) == pytest.approx(spared, rel=1e-5)


def test_a_layer_that_runs_twice_is_pulled_once() -> None:
    gradients = []
    for uses in (1, 2):
        case = _case(FixedPattern())
        products = [masked(case.gate, case.weight) for _ in range(uses)]
        case.gate.pull = PULL
        torch.autograd.backward(products, [torch.zeros(SHAPE)] * uses)
        gradients.append(case.gate.tiles.grad)
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().max() > 0


def test_set_tiles_scale_the_pattern_s_gradient_and_learn_nothing() -> None:
    grid = Geometry.parse("5x8").grid(SHAPE)
    dense = torch.rand(grid.tiles, generator=torch.Generator().manual_seed(1)) < 0.4
    case = _case(GumbelPattern(), dense=dense)
    stored = _leaf(case.gate.stored)
    pattern = plain.soft_pattern(stored, case.noise[1], PATTERN.temperature, PATTERN.scale)
    mask = plain.merged(plain.expand(dense.float(), 5, 8, SHAPE), pattern)
    product = _expected(case, mask)
    torch.testing.assert_close(case.run(), product, **CLOSE)
    torch.testing.assert_close(case.gate.stored.grad, stored.grad, **CLOSE)
    assert case.gate.tiles.grad is None


@pytest.mark.usefixtures("slices")
def test_top_two_hands_the_mask_s_gradient_straight_to_its_scores() -> None:
    case = _case(TopTwoPattern(), dense=torch.zeros(5, 5, dtype=torch.bool))
    found = case.run()
    hard = case.gate.pattern.hard(case.gate.stored)
    torch.testing.assert_close(found, case.weight * hard)
    loss = case.weight * case.grad - PULL.norm * case.weight.square() * hard
    torch.testing.assert_close(case.gate.stored.grad, loss, **CLOSE)


@pytest.mark.parametrize("pattern", [FixedPattern(), GumbelPattern(), TopTwoPattern()])
def test_without_noise_and_near_zero_temperature_masks_are_hard(pattern: Any) -> None:
    case = _case(pattern)
    moment = case.gate.moment
    moment.draw, moment.tile, moment.pattern = None, Annealed(1e-6, 1.0), Annealed(1e-6, 1.0)
    dense = plain.expand((case.gate.tiles.detach() > 0).float(), 5, 8, SHAPE).bool()
    mask = dense | case.gate.pattern.hard(case.gate.stored.detach())
    torch.testing.assert_close(masked(case.gate, case.weight).detach(), case.weight * mask)


def test_a_bf16_weight_stays_bf16_and_logits_stay_fp32() -> None:
    case = _case(GumbelPattern())
    case.weight, case.grad = case.weight.bfloat16(), case.grad.bfloat16()
    assert case.run().dtype == torch.bfloat16
    grads = (case.gate.tiles.grad, case.gate.stored.grad)
    assert all(grad is not None and grad.dtype == torch.float32 for grad in grads)


def test_every_draw_has_noise_of_its_own() -> None:
    case = _case(GumbelPattern())
    places = itertools.product((3, 4), (5, 6), (1, 2))
    outputs = []
    for seed, step, slot in places:
        case.gate.moment.draw = Draw(seed, step, slot)
        outputs.append(masked(case.gate, case.weight).detach())
    pairs = itertools.combinations(outputs, 2)
    assert not any(torch.equal(one, other) for one, other in pairs)


def _tied_cases(pattern: Any) -> list[tuple[Case, Tensor]]:
    """Gates of one tie of 4: by rows, by rows of two fused weights, and by columns."""
    logits = torch.nn.Parameter(
        0.05 * torch.randn(4, generator=torch.Generator().manual_seed(2))
    )
    cases = []
    for i, (tile, index) in enumerate(
        [
            ("band:6", torch.arange(4)[:, None]),
            ("band:3", (torch.arange(8) % 4)[:, None]),
            ("column:12", torch.arange(3)[None] + 1),
        ]
    ):
        case = _case(pattern, tile)
        gate, tied = case.gate, Tied("tie", logits, index)
        case.gate = Gate(
            f"w{i}", gate.grid, pattern, gate.moment, tiles=tied, stored=gate.stored
        )
        cases.append((case, index))
    return cases


@pytest.mark.usefixtures("slices")
@pytest.mark.parametrize("pattern", [FixedPattern(), GumbelPattern()])
def test_tied_tiles_share_a_logit_its_noise_and_the_sum_of_their_gradients(
    pattern: Any,
) -> None:
    cases = _tied_cases(pattern)
    logits = _leaf(cases[0][0].gate.tiles)
    noise = logistic([4], DRAW.generator("tie/tiles", torch.device("cpu")))
    choice = plain.soft_tiles(logits, 0.0, noise, TILE.temperature, TILE.scale)
    expected = []
    for case, index in cases:
        gate = case.gate
        stored = case.gate.stored.detach().float()
        if gate.pattern.learns:
            gumbels = gumbel(
                stored.shape, DRAW.generator(f"{gate.name}/pattern", stored.device)
            )
            stored = plain.soft_pattern(stored, gumbels, PATTERN.temperature, PATTERN.scale)
        tile = gate.grid.rows[1], gate.grid.columns[1]
        dense = plain.expand(choice[index], *tile, SHAPE)
        product = case.weight * plain.merged(dense, stored)
        loss = (product * case.grad).sum() + PULL.budget * plain.merged(dense, stored).sum()
        expected.append((product, loss - PULL.norm / 2 * product.square().sum()))
    torch.autograd.backward([loss for _, loss in expected])
    for (case, _), (product, _) in zip(cases, expected, strict=True):
        torch.testing.assert_close(case.run(), product.detach(), **CLOSE)
    torch.testing.assert_close(cases[0][0].gate.tiles.grad, logits.grad, **CLOSE)


def test_logits_of_tied_tiles_are_those_of_their_tie() -> None:
    cases = _tied_cases(FixedPattern())
    shared = cases[0][0].gate.tiles
    for case, index in cases:
        assert case.gate.tiles is shared
        assert torch.equal(case.gate.logits, shared[index])
    alone = _case(FixedPattern()).gate
    assert alone.logits is alone.tiles


def test_shared_parameters_are_listed_once() -> None:
    gates = {case.gate.name: case.gate for case, _ in _tied_cases(FixedPattern())}
    listed = parameters_of(gates)
    assert list(listed) == ["w0/tiles", "w0/stored", "w1/stored", "w2/stored"]
    assert listed["w0/tiles"] is gates["w2"].tiles
    alone = _case(FixedPattern()).gate
    assert list(parameters_of({"a": alone, "b": _case(FixedPattern()).gate})) == [
        "a/tiles", "a/stored", "b/tiles", "b/stored",
    ]  # fmt: skip
