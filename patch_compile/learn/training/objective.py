"""What learning minimises.

L = L_LM + lambda_1 |density - (1 - sparsity)| - lambda_2 * norm term
(PATCH, arXiv 2509.23410, equation 6). B: windows. T: tokens. V: vocabulary.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from patch_compile.learn.questions import UNASKED
from patch_compile.learn.training.gate import Gate, Pull

__all__ = ["Penalties", "language_loss"]


# Elements of a slice of logits: its few float32 copies then stay in the caches.
_SLICE = 2**21

# From log probabilities of some rows, which it uses up, and their aims: the sum of the loss,
# and its gradient by the logits.
_Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def language_loss(logits: Tensor, answers: Tensor, dense: Tensor | None) -> Tensor:
    """Returns a batch's mean loss in nats a token, float32 ().

    Args:
        logits: (B, T, V) of the masked model.
        answers: int64 (B, T), right at each position; see `questions`.
        dense: (B, T, V) of the dense model: the loss is KL(dense || masked) at every
            position; None: the cross entropy of the answers.
    """
    if dense is None:
        count = int((answers != UNASKED).sum())
        aim: tuple[Tensor, _Step, int] = answers.flatten(), _to_answers, count
    else:
        aim = dense.flatten(0, 1), _to_dense, answers.numel()
    loss: Tensor = _Loss.apply(logits.flatten(0, 1), *aim)  # type: ignore[no-untyped-call]
    return loss


class _Loss(torch.autograd.Function):
    """A loss of logits, (n, V), with its gradient found on the way forward.

    Autograd would keep several float32 copies of all logits; slice by slice, one of their
    own type is enough, in a fifth of the time.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, aims: Tensor, step: _Step, count: int) -> Tensor:
        total = torch.zeros((), dtype=torch.float64, device=logits.device)
        rows = max(1, _SLICE // logits.shape[1])
        ctx.gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        for first in range(0, len(logits), rows):
            here = slice(first, first + rows)
            loss, slope = step(logits[here].float().log_softmax(-1), aims[here])
            total += loss
            if ctx.gradient is not None:
                ctx.gradient[here] = slope.div_(count)
        return (total / count).float()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.gradient.mul_(grads[0]), None, None, None


def _to_dense(log_p: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the sum of KL(q || p) over rows, and its gradient by p's logits: p - q.

    Args:
        log_p: float32 (n, V); used up.
        dense: (n, V), the logits of q.
    """
    log_q = dense.float().log_softmax(-1)
    q = log_q.exp()
    loss = torch.dot(q.flatten(), log_q.sub_(log_p).flatten())
    return loss, log_p.exp_().sub_(q)


def _to_answers(log_p: Tensor, answers: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the sum of -log p of the answers, and its gradient by p's logits.

    Args:
        log_p: float32 (n, V); used up.
        answers: int64 (n,); rows of `UNASKED` count for nothing.
    """
    asked = (answers != UNASKED)[:, None]
    places = answers[:, None].clamp_min(0)
    loss = -log_p.gather(1, places).mul_(asked).sum()
    return loss, log_p.exp_().scatter_add_(
        1, places, log_p.new_tensor(-1.0).expand_as(places)
    ).mul_(asked)


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
