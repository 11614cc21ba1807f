"""What learning minimises.

L = L_LM + lambda_1 |density - (1 - sparsity)| - lambda_2 * norm term
(PATCH, arXiv 2509.23410, equation 6). B: windows. T: tokens. V: vocabulary.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from patch_compile.learn.questions import UNASKED
from patch_compile.learn.training.gate import Gate, Pull

__all__ = ["Penalties", "language_loss"]


def language_loss(logits: Tensor, answers: Tensor, dense: Tensor | None) -> Tensor:
    """Returns a batch's mean loss in nats a token.

    Args:
        logits: (B, T, V) of the masked model.
        answers: int64 (B, T), right at each position; see `questions`.
        dense: (B, T, V) of the dense model: the loss is KL(dense || masked) at every
            position; None: the cross entropy of the answers.
    """
    if dense is None:
        flat = logits.flatten(0, 1).float()
        return nn.functional.cross_entropy(flat, answers.flatten(), ignore_index=UNASKED)
    masked = logits.flatten(0, 1).float().log_softmax(-1)
    target = dense.flatten(0, 1).float().log_softmax(-1)
    return nn.functional.kl_div(masked, target, log_target=True, reduction="batchmean")


@dataclass(frozen=True)
class Penalties:
    """The terms of the objective that see masks alone.

    Attributes:
        density: lambda 1; 0 where the tiles are set.
        norm: lambda 2.
        variant: of the norm term: `paper`, sum ||W M||^2 / sum ||W||^2; `code`, of norms that
            are not squared, fading out linearly, as PATCH's authors run it.
        target: density wanted, 1 - sparsity.
        size: weights of all gates, or what the whole is in the units of the gates' gains.
        squares: of each gate's weight, sum of W^2.
    """

    density: float
    norm: float
    variant: str
    target: float
    size: int
    squares: Mapping[str, float]

    def apply(self, gates: Sequence[Gate], progress: float, share: float) -> float:
        """Tells the gates what to add to their gradients, and returns the penalties' value.

        Args:
            gates: all of them, after a forward pass.
            progress: of the run, 0 to 1.
            share: of this forward pass in the step's gradient.
        """
        # One tensor, so that a GPU is waited for once.
        sums = torch.stack([torch.stack((gate.gained, gate.norm)) for gate in gates])
        gained, norms = sums.T.tolist()
        density: float = 1.0 - sum(gained) / self.size
        slope = self.density * math.copysign(1.0, density - self.target) / self.size
        value = self.density * abs(density - self.target)
        weight = self.norm * (1.0 - progress if self.variant == "code" else 1.0)
        for gate, norm in zip(gates, norms, strict=True):
            gate.pull = Pull(share * slope, share * weight * self._earned(norm))
        return value - weight * self._ratio(norms)

    def _earned(self, norm: float) -> float:
        """Returns the factor of W^2 M in the norm term's derivative; `norm`: of its gate."""
        if self.variant == "paper":
            return 2.0 / sum(self.squares.values())
        whole = sum(math.sqrt(square) for square in self.squares.values())
        return 1.0 / (whole * max(math.sqrt(norm), 1e-12))

    def _ratio(self, norms: Sequence[float]) -> float:
        squared = self.variant == "paper"
        kept = sum(norm if squared else math.sqrt(norm) for norm in norms)
        whole = sum(s if squared else math.sqrt(s) for s in self.squares.values())
        return kept / whole
