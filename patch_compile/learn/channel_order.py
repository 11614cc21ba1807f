"""The order of channels in which 2:4 costs least.

2:4 takes two of every four neighbours, so it matters who the neighbours are: of four channels
that all matter two are lost. To put channels in another order before pruning is due to Pool
and Yu, "Channel Permutations for N:M Sparsity" (NeurIPS 2021).

R: rows, of all the weights that read the channels. K: channels. G: groups of four.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from patch_compile._require import require

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["exchange_channels", "lost_of_groups", "lost_of_rows"]

Order = NDArray[np.int64]

# Groups that exchange channels at a time: the work of a round is R x K times this.
_PARTNERS = 128

# Rows at a time: sums over more lose digits in float32.
_SLICE = 4096


def lost_of_groups(cost: "Tensor") -> NDArray[np.float64]:
    """Sums what each group of 2:4 loses, float64 (G,): its two cheapest of each row.

    Args:
        cost: float32 (R, K), what it costs to zero each weight.
    """
    return _lost(cost, 0)


def lost_of_rows(cost: "Tensor") -> NDArray[np.float64]:
    """Sums what each row loses as 2:4, float64 (R,); see `lost_of_groups`."""
    return _lost(cost, 1)


def _lost(cost: "Tensor", over: int) -> NDArray[np.float64]:
    torch = require("torch", "learn")
    four = cost.view(len(cost), -1, 4).sort(-1).values
    summed: NDArray[np.float64] = four[..., :2].sum((over, 2), dtype=torch.float64).numpy()
    return summed


def exchange_channels(cost: "Tensor", order: Order, rng: np.random.Generator) -> Order:
    """Returns an order whose groups lose no more, up to rounding, and mostly less.

    Every group gives one channel away, drawn at random, and gets back one of those that up to
    `_PARTNERS` groups gave: the one that makes these groups together lose least, by linear
    assignment.

    Args:
        cost: float32 (R, K), what it costs to zero each weight.
        order: int64 (K,), K a multiple of 4; each four consecutive channels are a group.
        rng: draws the channels, and which groups exchange.
    """
    groups = rng.permuted(order.reshape(-1, 4), axis=1)
    parts = -(-len(groups) // _PARTNERS)
    for part in np.array_split(rng.permutation(len(groups)), parts):
        given = groups[part, 0]
        groups[part, 0] = given[_takers(cost, groups[part])]
    exchanged: Order = groups.ravel()
    return exchanged


def _takers(cost: "Tensor", groups: Order) -> NDArray[np.int64]:
    """Returns which of the groups' first channels each group should get, int64 (G,).

    Beside three of costs a <= b <= c a channel of cost s loses a + min(s, b) in a row, and
    min(s, b) = (s + b - |s - b|) / 2. All channels and all groups are used once, so that only
    the sum of |s - b| over the rows is left to choose.
    """
    torch = require("torch", "learn")
    given = torch.from_numpy(groups[:, 0].copy())
    kept = torch.from_numpy(groups[:, 1:].copy())
    apart = torch.zeros(len(groups), len(groups), dtype=torch.float64)
    for rows in torch.split(cost, _SLICE):
        middle = rows[:, kept].median(-1).values
        apart += torch.cdist(middle.T.contiguous(), rows[:, given].T.contiguous(), p=1)
    _, takers = linear_sum_assignment(apart.numpy(), maximize=True)
    return np.asarray(takers, np.int64)
