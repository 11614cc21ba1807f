"""x (W M)^T against torch's own linear layer over a mask that is written down."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from patch_compile.learn.training.gate import Gate, Moment
from patch_compile.learn.training.noise import Draw, gumbel, logistic
from patch_compile.learn.training.patterns import GumbelPattern, TopTwoPattern
from patch_compile.learn.training.product import masked_product
from patch_compile.learn.training.schedule import Annealed
from patch_compile.tiles.geometry import Geometry
from tests.learn.training import plain

SHAPE = (22, 36)
TILE, PATTERN = Annealed(0.7, 30.0), Annealed(1.3, 80.0)
DRAW = Draw(seed=3, step=5, slot=1)
CPU = torch.device("cpu")


def _gate(pattern: Any, weight: Tensor, dtype: torch.dtype | None = None) -> Gate:
    seeded = torch.Generator().manual_seed(1)
    grid = Geometry.parse("5x8").grid(SHAPE)
    tiles = 0.05 * torch.randn(grid.tiles, generator=seeded)
    moment = Moment(TILE, PATTERN, DRAW, dtype=dtype)
    stored = pattern.start(weight.float().abs(), seeded)
    return Gate("w", grid, pattern, moment, tiles=tiles, stored=stored)


def _mask(gate: Gate, tiles: Tensor, stored: Tensor) -> Tensor:
    noise = logistic(tiles.shape, DRAW.generator("w/tiles", CPU))
    gumbels = gumbel(stored.shape, DRAW.generator("w/pattern", CPU))
    density = plain.soft_tiles(tiles, 0.0, noise, TILE.temperature, TILE.scale)
    pattern = plain.soft_pattern(stored, gumbels, PATTERN.temperature, PATTERN.scale)
    return plain.merged(plain.expand(density, 5, 8, SHAPE), pattern)


def _given() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """An input of two batches, a weight, a bias, and a gradient of the output."""
    seeded = torch.Generator().manual_seed(0)
    shapes = ((2, 7, SHAPE[1]), SHAPE, SHAPE[:1], (2, 7, SHAPE[0]))
    x, weight, bias, grad = (torch.randn(shape, generator=seeded) for shape in shapes)
    return x.requires_grad_(), weight, bias, grad


@pytest.mark.parametrize("biased", [False, True])
def test_values_and_gradients_are_those_of_a_linear_layer(biased: bool) -> None:
    x, weight, bias, grad = _given()
    gate = _gate(GumbelPattern(), weight)
    leaves = [p.detach().clone().requires_grad_() for p in (x, gate.tiles, gate.stored)]
    added = bias if biased else None
    expected = torch.nn.functional.linear(leaves[0], weight * _mask(gate, *leaves[1:]), added)
    expected.backward(grad)
    found = masked_product(x, weight, added, gate)
    found.backward(grad)
    torch.testing.assert_close(found, expected)
    for parameter, leaf in zip((x, gate.tiles, gate.stored), leaves, strict=True):
        torch.testing.assert_close(parameter.grad, leaf.grad, rtol=1e-4, atol=1e-4)


def test_gates_learn_the_same_from_an_input_without_gradient() -> None:
    x, weight, _, grad = _given()
    gate = _gate(GumbelPattern(), weight)
    with_x = masked_product(x, weight, None, gate)
    with_x.backward(grad)
    asked = [gate.tiles.grad, gate.stored.grad]
    gate.tiles.grad = gate.stored.grad = None
    masked_product(x.detach(), weight, None, gate).backward(grad)
    for once, again in zip(asked, (gate.tiles.grad, gate.stored.grad), strict=True):
        assert once is not None
        assert again is not None
        assert torch.equal(once, again)


@pytest.mark.parametrize(("pattern", "bytes_"), [(GumbelPattern(), 0), (TopTwoPattern(), 1)])
def test_at_most_a_byte_a_weight_is_kept_for_the_backward_pass(
    pattern: Any, bytes_: int
) -> None:
    x, weight, _, _ = _given()
    gate = _gate(pattern, weight)
    kept: list[Tensor] = []
    with saved_tensors_hooks(
        lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor
    ):
        found = masked_product(x, weight, None, gate)
    # And nothing past the hooks.
    assert set(vars(found.grad_fn)) == {"gate"}
    there = {tensor.data_ptr() for tensor in (x, weight, gate.tiles, gate.stored)}
    new = [tensor for tensor in kept if tensor.data_ptr() not in there]
    assert sum(tensor.nbytes for tensor in new) == bytes_ * weight.numel()


def test_under_autocast_the_product_is_in_bf16_and_so_is_what_it_keeps() -> None:
    x, weight, bias, grad = _given()
    gate = _gate(GumbelPattern(), weight, torch.bfloat16)
    mask = _mask(gate, gate.tiles.detach(), gate.stored.detach())
    kept: list[Tensor] = []
    with (
        torch.autocast("cpu", torch.bfloat16),
        saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t),
    ):
        found = masked_product(x, weight.bfloat16(), bias, gate)
    assert found.dtype == torch.bfloat16
    assert not any(t.shape == x.shape and t.dtype == torch.float32 for t in kept)
    low = (x, weight.bfloat16() * mask, bias)
    expected = torch.nn.functional.linear(*(tensor.bfloat16() for tensor in low))
    torch.testing.assert_close(found, expected)
    found.backward(grad.bfloat16())
    assert x.grad is not None
    assert x.grad.dtype == torch.float32
    close: dict[str, Any] = {"rtol": 2e-2, "atol": 2e-1}
    torch.testing.assert_close(x.grad, (grad @ (weight * mask)), **close)
