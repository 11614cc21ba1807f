"""Which tiles are dense, where that is decided anew at every step.

Tiles have scores that learn; those of the lowest go sparse, as many as the budget asks for.
The forward pass is thus always of a mask that could be deployed, and the gradient of each
tile's density is handed to its score as it is (edge-popup, arXiv 1911.13299, for tiles).
"""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import Parameter

from patch_compile.learn.training.gate import Gate

__all__ = ["choose"]


@torch.no_grad()
def choose(gates: Iterable[Gate], target: float) -> None:
    """Sets the tiles of gates: sparse by rank, lowest score first, until they gain `target`.

    Args:
        gates: whose tiles are ranked; those that share scores are decided together.
        target: the sum of the gains that is wanted; it is met to half a tile. Tiles that gain
            nothing stay dense.
    """
    sharing: dict[Parameter, list[Gate]] = {}
    for gate in gates:
        sharing.setdefault(gate.tiles, []).append(gate)
    gains = torch.cat([_gains(scores, those).flatten() for scores, those in sharing.items()])
    order = torch.cat([scores.flatten() for scores in sharing]).argsort(stable=True)
    reached = gains[order].cumsum(0) - gains[order] / 2
    dense = torch.empty_like(order, dtype=torch.bool)
    dense[order] = (reached > target) | (gains[order] == 0)
    for scores, those in sharing.items():
        mine, dense = dense[: scores.numel()], dense[scores.numel() :]
        for gate in those:
            gate.set_tiles(mine.view_as(scores))


def _gains(scores: Parameter, gates: list[Gate]) -> Tensor:
    """Sums what each score gains over the tiles that go by it, float64, as the scores."""
    total = torch.zeros(scores.shape, dtype=torch.float64, device=scores.device)
    for gate in gates:
        every = gate.gains.double().expand(gate.grid.tiles)
        if gate.index is None:
            total += every
        else:
            total.index_put_((gate.index,), every, accumulate=True)
    return total
