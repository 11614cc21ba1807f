"""The gates' gradients against finite differences of their own outputs.

A gate computes in float32: the adaptor below takes and gives float64, and the steps and
tolerances are those that 24 bits allow.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from patch_compile.learn.training.gate import Gate, Moment, Tied
from patch_compile.learn.training.noise import Draw
from patch_compile.learn.training.patterns import (
    FixedPattern,
    GumbelPattern,
    NoPattern,
    TopTwoPattern,
)
from patch_compile.learn.training.schedule import Annealed
from patch_compile.tiles.geometry import Geometry
from tests.learn.training.products import masked

# Ragged along both axes with tiles of 4 x 8.
SHAPE = (6, 12)
# So flat that third derivatives times the step squared are below the tolerance.
TILE, PATTERN = Annealed(1.5, 2.0), Annealed(1.2, 2.5)
STEP = 1e-2
TOLERANCE = 1e-3
DRAWS = [None, Draw(seed=3, step=5, slot=1)]


def made_gate(pattern: Any, tile: str, draw: Draw | None, tied: Tensor | None = None) -> Gate:
    seeded = torch.Generator().manual_seed(0)
    grid = Geometry.parse(tile).grid(SHAPE)
    logits = 0.3 * torch.randn(grid.tiles, generator=seeded)
    stored = pattern.start(torch.rand(SHAPE, generator=seeded), seeded)
    shared = None if tied is None else torch.nn.Parameter(logits.flatten()[: tied.max() + 1])
    tiles = logits if shared is None or tied is None else Tied("tie", shared, tied)
    return Gate("w", grid, pattern, Moment(TILE, PATTERN, draw), tiles=tiles, stored=stored)


class _Masked(torch.nn.Module):
    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self.gate = gate

    def forward(self, weight: Tensor) -> Tensor:
        return masked(self.gate, weight)


def check_gate(gate: Gate, *learned: str) -> None:
    """Compares the gradients of the parameters named, at random values, in all directions."""
    seeded = torch.Generator().manual_seed(1)
    weight = torch.randn(SHAPE, generator=seeded)
    known = dict(gate.named_parameters())
    points = [
        0.3 * torch.randn(known[name].shape, generator=seeded, dtype=torch.float64)
        for name in learned
    ]

    def product(*values: Tensor) -> Tensor:
        given = {f"gate.{n}": v.float() for n, v in zip(learned, values, strict=True)}
        found: Tensor = torch.func.functional_call(_Masked(gate), given, (weight,))
        return found.double()

    torch.autograd.gradcheck(
        product,
        [point.requires_grad_() for point in points],
        eps=STEP,
        atol=TOLERANCE,
        rtol=TOLERANCE,
    )


@pytest.mark.parametrize("draw", DRAWS, ids=["no noise", "noise"])
@pytest.mark.parametrize("tile", ["4x8", "band:4", "column:8", "weight", "1x4"])
def test_tiles_and_pattern_of_patch_joint(tile: str, draw: Draw | None) -> None:
    check_gate(made_gate(GumbelPattern(), tile, draw), "tiles", "stored")


@pytest.mark.parametrize("draw", DRAWS, ids=["no noise", "noise"])
@pytest.mark.parametrize("pattern", [FixedPattern(), TopTwoPattern(), NoPattern()])
def test_tiles_over_a_pattern_that_stands(pattern: Any, draw: Draw | None) -> None:
    # The pattern of `topk-ste` has a gradient by decree, and no difference quotient.
    check_gate(made_gate(pattern, "4x8", draw), "tiles")


@pytest.mark.parametrize("draw", DRAWS, ids=["no noise", "noise"])
def test_tied_tiles(draw: Draw | None) -> None:
    index = torch.tensor([[0, 1], [1, 0]])
    check_gate(made_gate(GumbelPattern(), "4x8", draw, index), "tiles", "stored")
