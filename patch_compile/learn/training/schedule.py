"""How temperatures, scales and the learning rate move: pure functions of the step."""

import math
from dataclasses import dataclass

__all__ = ["Anneal", "Annealed", "learning_rate"]


@dataclass(frozen=True)
class Annealed:
    """How a sampled mask reads its logits: softmax((scale * logit + noise) / temperature).

    Attributes:
        temperature: tau, above 0; near 0 samples are hard.
        scale: kappa; large beside the noise, samples follow the logits.
    """

    temperature: float
    scale: float


@dataclass(frozen=True)
class Anneal:
    """A linear course of both, as PATCH and MaskLLM run it (arXiv 2509.23410, table 6).

    Attributes:
        temperature: first and last.
        scale: first and last.
    """

    temperature: tuple[float, float]
    scale: tuple[float, float]

    def at(self, step: int, steps: int) -> Annealed:
        """Returns the values for a step from 0 to `steps` - 1."""
        share = min(1.0, step / max(1, steps - 1))
        return Annealed(_between(self.temperature, share), _between(self.scale, share))


def _between(ends: tuple[float, float], share: float) -> float:
    first, last = ends
    return first + share * (last - first)


def learning_rate(peak: float, step: int, steps: int, warmup: int = 5) -> float:
    """Returns the rate of a step: linear warm-up, then a cosine to 0."""
    rise = min(1.0, (step + 1) / warmup)
    return peak * rise * 0.5 * (1.0 + math.cos(math.pi * step / steps))
