"""PATCH as its equations read (arXiv 2509.23410, section 3), under torch's own autograd.

Every tensor is whole, nothing is shared with the product: what the benchmarks compare it with.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["PlainMasked", "replace_linears"]

_PAIRS = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))


class PlainMasked(nn.Module):
    """x (W * M)^T with M = T + (1 - T) P.

    Attributes:
        tiles: logits, (R, C).
        logits: of the six patterns of each group, (N K / 4, 6), where they are learned.
        made: W * M's mask, float32 (N, K), as last sampled; see `sample`.
    """

    def __init__(self, layer: Any, tile: int, joint: bool, keep: Tensor | None = None) -> None:
        super().__init__()
        weight = layer.weight.requires_grad_(False)
        n, k = weight.shape
        self.layer: Any = layer
        self.tile = tile
        self.made: Any = None
        self.tiles = nn.Parameter(0.014 * torch.randn(-(-n // tile), -(-k // tile)))
        if keep is None:
            top = weight.abs().view(-1, 4).topk(2, 1).indices
            keep = torch.zeros(n * k // 4, 4).scatter_(1, top, 1.0)
        prior = keep.float().view(-1, 4)
        six = torch.tensor([[float(i in pair) for i in range(4)] for pair in _PAIRS])
        self.register_buffer("six", six)
        self.register_buffer("frozen", prior.view(n, k))
        # MaskLLM leans its start to the prior by three deviations a shared place.
        leaning = prior @ six.T - 1.0
        start = 0.01 * (torch.randn(n * k // 4, 6) + 3.0 * leaning)
        self.logits = nn.Parameter(start) if joint else None

    def sample(self, tile: tuple[float, float], pattern: tuple[float, float]) -> None:
        """Draws a soft mask; a pair is (temperature, scale)."""
        both = torch.stack([torch.zeros_like(self.tiles), tile[1] * self.tiles], -1)
        tiles = self.expanded(nn.functional.gumbel_softmax(both, tau=tile[0])[..., 1])
        soft = self._buffer("frozen")
        if self.logits is not None:
            chosen = nn.functional.gumbel_softmax(pattern[1] * self.logits, tau=pattern[0])
            soft = (chosen @ self._buffer("six")).view_as(soft)
        self.made = tiles + (1 - tiles) * soft

    def harden(self, dense: Tensor) -> None:
        """Sets the mask for good: `dense` tiles, bool (R, C), and the likeliest patterns."""
        hard = self._buffer("frozen")
        if self.logits is not None:
            hard = self._buffer("six")[self.logits.argmax(1)].view_as(hard)
        self.made = torch.maximum(self.expanded(dense.float()), hard)

    def expanded(self, tiles: Tensor) -> Tensor:
        """Repeats a value of each tile over its weights, (N, K)."""
        n, k = self.layer.weight.shape
        wide = tiles.repeat_interleave(self.tile, 0).repeat_interleave(self.tile, 1)
        return wide[:n, :k]

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.layer.weight * self.made, self.layer.bias)

    def _buffer(self, name: str) -> Tensor:
        return self.get_buffer(name)


def replace_linears(
    module: Any,
    names: list[str],
    tile: int,
    *,
    joint: bool,
    keep: Mapping[str, Tensor] | None = None,
) -> list[PlainMasked]:
    """Puts a `PlainMasked` in the place of each linear layer, named by its weight.

    `keep` has the 2:4 patterns to start from, bool (N, K); those of the magnitudes if None.
    """
    layers = []
    for name in names:
        parent, _, child = name.removesuffix(".weight").rpartition(".")
        linear = module.get_submodule(f"{parent}.{child}")
        layer = PlainMasked(linear, tile, joint, None if keep is None else keep[name])
        setattr(module.get_submodule(parent), child, layer)
        layers.append(layer)
    return layers
