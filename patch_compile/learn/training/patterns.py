"""Patterns: what stays in a sparse tile, fixed or learned.

N: out features. K: in features. G = K/4: groups along K. n: rows of a slice; a gate works on
slices of rows, so that temporary tensors stay small.
"""

from typing import Any, Protocol

import torch
from torch import Generator, Tensor

from patch_compile.learn.training.noise import gumbel
from patch_compile.learn.training.schedule import Annealed

__all__ = ["FixedPattern", "GumbelPattern", "NoPattern", "Pattern", "TopTwoPattern", "top_two"]


class Pattern(Protocol):
    """A mask of a weight as if all its tiles were sparse, soft or hard.

    Attributes:
        learns: it has logits or scores.
        kept: samples are of int8 and remember nothing, and to keep one for the backward pass
            is cheaper than to sample again.
        zeros: share of a sparse tile.
    """

    learns: bool
    kept: bool
    zeros: float

    def start(self, saliency: Tensor, generator: Generator) -> Tensor:
        """Returns what a gate stores for the pattern, N rows: logits, or a fixed mask.

        Args:
            saliency: float32 (N, K), how a one-shot method ranks the weights.
            generator: for random starts.
        """
        ...

    def sample(
        self, stored: Tensor, annealed: Annealed, generator: Generator | None
    ) -> tuple[Tensor, Any]:
        """Returns the mask of n rows, (n, K), 0 to 1, and what `gradient` must remember.

        Without a generator there is no noise. Hard masks are int8: products with bool are
        slow.
        """
        ...

    def gradient(self, grad: Tensor, remembered: Any, annealed: Annealed) -> Tensor:
        """Returns the gradient of n stored rows from that of their mask, float32 (n, K)."""
        ...

    def hard(self, stored: Tensor) -> Tensor:
        """Returns the final mask, bool (N, K)."""
        ...


class FixedPattern:
    """The best two of every four by a one-shot saliency, for good: PATCH-Tile."""

    learns = False
    kept = False
    zeros = 0.5

    def start(self, saliency: Tensor, generator: Generator) -> Tensor:
        """Returns the mask, bool (N, K)."""
        return top_two(saliency)

    def sample(
        self, stored: Tensor, annealed: Annealed, generator: Generator | None
    ) -> tuple[Tensor, None]:
        """Returns the stored rows, int8."""
        return stored.view(torch.int8), None

    def gradient(self, grad: Tensor, remembered: None, annealed: Annealed) -> Tensor:
        """Never called."""
        raise NotImplementedError

    def hard(self, stored: Tensor) -> Tensor:
        """Returns the stored mask, bool."""
        return stored


class NoPattern(FixedPattern):
    """Sparse tiles are empty: with tiles of one weight each this is LEAP."""

    zeros = 1.0

    def start(self, saliency: Tensor, generator: Generator) -> Tensor:
        """Returns zeros, bool (N, 1), to broadcast along K."""
        return torch.zeros_like(saliency[:, :1], dtype=torch.bool)


class TopTwoPattern:
    """A score a weight; forward keeps the top two of four, backward goes straight through.

    The gradient of the mask is handed to the scores as it is, for kept and lost weights alike
    (edge-popup, arXiv 1911.13299; SR-STE, arXiv 2102.04010).
    """

    learns = True
    kept = True
    zeros = 0.5

    def start(self, saliency: Tensor, generator: Generator) -> Tensor:
        """Returns log saliencies, standardised within each group of four, (N, K)."""
        # A thousandth of the mean, so that a zero weight has a finite score.
        scores = (saliency + 1e-3 * saliency.mean()).log()
        groups = _fours(scores)
        centred = groups - groups.mean(-1, keepdim=True)
        spread = groups.std(-1, keepdim=True).clamp_min(1e-6)
        return centred.div_(spread).flatten(1)

    def sample(
        self, stored: Tensor, annealed: Annealed, generator: Generator | None
    ) -> tuple[Tensor, None]:
        """Returns the top two of four, int8 (n, K); no noise."""
        return top_two(stored).view(torch.int8), None

    def gradient(self, grad: Tensor, remembered: None, annealed: Annealed) -> Tensor:
        """Returns `grad`."""
        return grad

    def hard(self, stored: Tensor) -> Tensor:
        """Returns the top two of four, bool (N, K)."""
        return top_two(stored)


# The six ways to keep two of four, as MaskLLM orders them (arXiv 2409.17481): for each place
# of a group, the patterns that keep it.
_KEEPING = ((0, 1, 2), (0, 3, 4), (1, 3, 5), (2, 4, 5))
_PLACES = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))

# MaskLLM's start: noise of this deviation, and a push of `_STRENGTH` deviations for each
# place that a pattern shares with the prior, less one.
_DEVIATION = 0.01
_STRENGTH = 3.0


class GumbelPattern:
    """Six logits a group, (N, 6, G), sampled by Gumbel-softmax: MaskLLM.

    M = softmax((kappa p + z) / tau) S, with S the six patterns (arXiv 2409.17481, equation 5).
    """

    learns = True
    kept = False
    zeros = 0.5

    def start(self, saliency: Tensor, generator: Generator) -> Tensor:
        """Returns small random logits that lean to the prior's mask."""
        prior = _fours(top_two(saliency)).float()
        planes = [prior[..., a] + prior[..., b] - 1.0 for a, b in _PLACES]
        overlap = torch.stack(planes, 1)
        noise = torch.empty(overlap.shape, device=overlap.device).normal_(generator=generator)
        return _DEVIATION * (noise + _STRENGTH * overlap)

    def sample(
        self, stored: Tensor, annealed: Annealed, generator: Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Returns the soft mask, float32 (n, K), and the patterns' weights, (n, 6, G)."""
        steep = annealed.scale / annealed.temperature
        if generator is None:
            raised = stored * steep
        else:
            # Noise that is divided when it is looked up spares two passes over all logits.
            noise = gumbel(stored.shape, generator, 1.0 / annealed.temperature)
            raised = noise.add_(stored, alpha=steep)
        chosen = torch.softmax(raised, 1)
        planes = [chosen[:, a] + chosen[:, b] + chosen[:, c] for a, b, c in _KEEPING]
        # Stacked in front and then turned: twice as fast as stacked behind.
        return torch.stack(planes, 1).transpose(1, 2).flatten(1), chosen

    def gradient(self, grad: Tensor, remembered: Tensor, annealed: Annealed) -> Tensor:
        """Returns the softmax's vector-Jacobian product, float32 (n, 6, G)."""
        places = _fours(grad)
        direct = torch.stack([places[..., a] + places[..., b] for a, b in _PLACES], 1)
        mean = (direct * remembered).sum(1, keepdim=True)
        return direct.sub_(mean).mul_(remembered).mul_(annealed.scale / annealed.temperature)

    def hard(self, stored: Tensor) -> Tensor:
        """Returns the pattern of the largest logit of every group, bool (N, K)."""
        best = stored.argmax(1)
        planes = [(best == a) | (best == b) | (best == c) for a, b, c in _KEEPING]
        return torch.stack(planes, -1).flatten(1)


def top_two(scores: Tensor) -> Tensor:
    """Marks the two largest of every 4 consecutive scores along K, bool (N, K).

    Ties go to the left, as in `tiles.pattern.top2_of_4`.
    """
    a, b, c, d = _fours(scores).unbind(-1)
    ab, ac, ad, bc, bd, cd = (
        pair.to(torch.int8) for pair in (a >= b, a >= c, a >= d, b >= c, b >= d, c >= d)
    )
    # Matches won, of three: an element that wins two is among the best two.
    won = (ab + ac + ad, 1 - ab + bc + bd, 2 - ac - bc + cd, 3 - ad - bd - cd)
    return torch.stack([wins >= 2 for wins in won], -1).flatten(1)


def _fours(values: Tensor) -> Tensor:
    """Views (n, K) as groups, (n, G, 4)."""
    return values.view(values.shape[0], -1, 4)
