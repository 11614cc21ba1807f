"""Against the budget's own ranking, which is numpy and goes tile by tile."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import Parameter

from patch_compile.learn.training.choice import choose
from patch_compile.learn.training.gate import Gate, Moment, Tied
from patch_compile.learn.training.patterns import TopTwoPattern
from patch_compile.learn.training.schedule import Annealed
from patch_compile.tiles.budget import choose_sparse_tiles
from patch_compile.tiles.geometry import Geometry
from tests.learn.training import plain

ANNEALED = Annealed(1.0, 1.0)
SHAPES = ((8, 12), (6, 16), (4, 8))


def _gates(seed: int, tied: bool = False) -> list[Gate]:
    seeded = torch.Generator().manual_seed(seed)
    shared = Parameter(torch.randn(3, generator=seeded))
    gates = []
    for place, shape in enumerate(SHAPES):
        grid = Geometry.parse("4x8").grid(shape)
        tiles: Any = torch.randn(grid.tiles, generator=seeded)
        if tied and place < 2:
            count = grid.areas.size
            tiles = Tied("tie 0", shared, torch.arange(count).view(grid.tiles) % 3)
        stored = torch.randn(shape, generator=seeded)
        moment = Moment(ANNEALED, ANNEALED)
        gates.append(
            Gate(
                f"w{place}",
                grid,
                TopTwoPattern(),
                moment,
                tiles=tiles,
                stored=stored,
                ranked=True,
            )
        )
    return gates


def _set(gate: Gate) -> torch.Tensor:
    assert gate.dense is not None
    return gate.dense


@given(seed=st.integers(0, 1000), share=st.floats(0, 1))
def test_tiles_are_those_that_the_budget_would_choose(seed: int, share: float) -> None:
    gates = _gates(seed)
    gains = [gate.gains.double().expand(gate.grid.tiles).numpy() for gate in gates]
    target = share * sum(gain.sum() for gain in gains)
    choose(gates, target)
    prices = [g.tiles.detach().numpy() * gain for g, gain in zip(gates, gains, strict=True)]
    expected = choose_sparse_tiles(prices, gains, target)
    for gate, sparse in zip(gates, expected, strict=True):
        np.testing.assert_array_equal(~_set(gate).numpy(), sparse)


def test_tied_tiles_go_together_and_count_together() -> None:
    gates = _gates(1, tied=True)
    lowest = int(gates[0].tiles.argmin())
    with torch.no_grad():
        gates[0].tiles[lowest] = -9.0
    gains = [gate.gains.double().expand(gate.grid.tiles) for gate in gates]
    index = [gate.index for gate in gates[:2]]
    gained = sum(float(g[i == lowest].sum()) for g, i in zip(gains, index, strict=False))
    choose(gates, gained)
    assert [bool((~_set(g))[i == lowest].all()) for g, i in zip(gates, index, strict=False)]
    assert sum(int((~_set(g)).sum()) for g in gates) == sum(
        int((i == lowest).sum()) for i in index if i is not None
    )


def test_tiles_that_gain_nothing_stay_dense() -> None:
    gates = _gates(2)
    gates[0].gains = torch.zeros(1, 1)
    choose(gates, 1e9)
    assert _set(gates[0]).all()
    assert not _set(gates[1]).any()


@pytest.mark.parametrize("seed", range(3))
def test_scores_learn_what_a_tile_s_density_would_change(seed: int) -> None:
    gate = _gates(seed)[0]
    choose([gate], 0.4 * float(gate.gains.expand(gate.grid.tiles).sum()))
    seeded = torch.Generator().manual_seed(seed)
    weight, grad = torch.randn(2, *SHAPES[0], generator=seeded)
    density = _set(gate).float().requires_grad_()
    # Straight through: the mask is the leaf whose gradient the scores get.
    pattern = gate.pattern.hard(gate.stored.detach()).float().requires_grad_()
    tiles = plain.expand(density, 4, 8, SHAPES[0])
    product = weight * plain.merged(tiles, pattern)
    (product * grad).sum().backward()
    found = gate(weight)
    (found * grad).sum().backward()
    torch.testing.assert_close(found, product)
    torch.testing.assert_close(gate.tiles.grad, density.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gate.stored.grad, pattern.grad, rtol=1e-4, atol=1e-5)
