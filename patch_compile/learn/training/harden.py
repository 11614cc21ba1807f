"""From learned gates to hard masks, before a budget says how many tiles are 2:4.

N: out features. K: in features. R, C: tiles along N and K.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from patch_compile.io.digests import digests
from patch_compile.learn.candidates import Candidates, FreeWeight, FreeWeights, ScoredTiles
from patch_compile.learn.linears import Linear
from patch_compile.learn.training.gate import Gate
from patch_compile.tiles.masks import Masks
from patch_compile.tiles.pattern import pack_keep
from patch_compile.tiles.weight_mask import WeightMask

__all__ = ["hardened"]

# Deviations from 0 beyond which prices are equal: of a large tile, float32 holds them.
_DEAREST = 60.0


def hardened(
    gates: Mapping[str, Gate],
    prior: Masks | None,
    linears: Mapping[str, Linear],
    description: Mapping[str, Any],
) -> Candidates:
    """Returns what gates have learned, to cut masks of any sparsity from.

    Args:
        gates: by the names of their weights.
        prior: the one-shot masks they started from; None for a method without tiles.
        linears: by the names of their weights.
        description: how the masks were made.
    """
    if prior is None:
        return FreeWeights(
            [_free(linears[name], gate) for name, gate in gates.items()], description
        )
    unit = _deviation(gates)
    weights = {
        name: _hardened(mask, gates.get(name), unit) for name, mask in prior.weights.items()
    }
    return ScoredTiles(Masks(weights, description))


def _deviation(gates: Mapping[str, Gate]) -> float | None:
    """Returns the standard deviation of all tile logits; None where tiles are set."""
    if not all(gate.learns_tiles for gate in gates.values()):
        return None
    logits = torch.cat([gate.logits.detach().flatten() for gate in gates.values()])
    return max(float(logits.double().std(correction=0)), 1e-12)


def _free(linear: Linear, gate: Gate) -> FreeWeight:
    logits = gate.tiles.detach().cpu().numpy()
    return FreeWeight(linear.name, logits, digests(linear.array()))


def _hardened(mask: WeightMask, gate: Gate | None, unit: float | None) -> WeightMask:
    """Gives a one-shot mask the pattern that was learned, and prices for its tiles' logits.

    Args:
        mask: all 2:4.
        gate: of its weight; None where nothing was learned, for tiles were set dense or going
            2:4 would save no time.
        unit: deviation of the logits, where tiles were learned.
    """
    if gate is None:
        return mask if unit is None else replace(mask, scores=_priced(mask, np.inf))
    keep = gate.pattern.hard(gate.stored.detach()).cpu().numpy()
    packed = pack_keep(keep)
    scores = gate.logits.detach().cpu().numpy()
    if unit is not None:
        scores = _priced(mask, scores / unit)
    return replace(mask, bits=lambda: packed, scores=scores)


def _priced(mask: WeightMask, raised: Any) -> NDArray[np.float32]:
    """Returns exp(logit / deviation) for every zero of a tile, float32 (R, C).

    Logits start as logarithms of costs, in this unit: budgets rank by price for what a tile
    gains, and add prices up, so that they must be positive.
    """
    price = np.exp(np.clip(raised, -_DEAREST, _DEAREST))
    priced: NDArray[np.float32] = (price * (mask.grid.areas // 2)).astype(np.float32)
    return priced
