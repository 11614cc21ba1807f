"""The masks of PATCH, MaskLLM and LEAP written down as they are in the papers.

Whole tensors and torch's own autograd; shares nothing with the product but the noise.
"""

import itertools

import torch
from torch import Tensor

# The six ways to keep two of four, in MaskLLM's order.
SIX = torch.tensor(
    [[float(i in pair) for i in range(4)] for pair in itertools.combinations(range(4), 2)]
)


def expand(tiles: Tensor, height: int, width: int, shape: tuple[int, int]) -> Tensor:
    block = torch.ones(height, width, dtype=tiles.dtype)
    return torch.kron(tiles, block)[: shape[0], : shape[1]]


def soft_tiles(
    logits: Tensor, zero: Tensor | float, one: Tensor | float, tau: float, kappa: float
) -> Tensor:
    """Two-class Gumbel-softmax over [0, P]; `zero`, `one`: the Gumbel noise of both."""
    both = torch.stack([torch.zeros_like(logits) + zero, kappa * logits + one], -1) / tau
    return both.softmax(-1)[..., 1]


def soft_pattern(logits: Tensor, noise: Tensor | float, tau: float, kappa: float) -> Tensor:
    """(N, 6, G) logits to a mask (N, 4 G)."""
    chosen = ((kappa * logits + noise) / tau).softmax(1)
    return torch.einsum("npg,pf->ngf", chosen, SIX.to(logits.dtype)).flatten(1)


def merged(tiles: Tensor, pattern: Tensor) -> Tensor:
    return tiles + (1 - tiles) * pattern
