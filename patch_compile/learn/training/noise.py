"""Noise that depends on the place it is drawn for, and on nothing else.

A mask is drawn in the forward pass and once more in the backward pass, perhaps on another
machine after a restart: each time it must come out the same.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Generator, Tensor

__all__ = ["Draw", "gumbel", "logistic"]


@dataclass(frozen=True)
class Draw:
    """One sample of all masks of a model.

    Attributes:
        seed: of the run.
        step: of learning.
        slot: which of the step's forward passes, counted over all processes.
    """

    seed: int
    step: int
    slot: int

    def generator(self, name: str, device: torch.device) -> Generator:
        """Returns the generator of one tensor of this sample."""
        place = f"{self.seed}/{self.step}/{self.slot}/{name}".encode()
        # Neighbouring seeds give Mersenne Twisters that start alike: a hash has none.
        number = int.from_bytes(hashlib.blake2b(place, digest_size=8).digest(), "little")
        return Generator(device).manual_seed(number % 2**63)


def gumbel(shape: Sequence[int], generator: Generator, factor: float = 1.0) -> Tensor:
    """Draws Gumbel noise, -log(-log(u)), times a factor, float32.

    u has 16 random bits, (b + 1/2) / 65536, so the noise itself lies within -2.47 and 11.8: a
    generator on the CPU gives 64 bits a call, and slowly. So few values are looked up faster
    than two logarithms are taken.
    """
    bits = _bits(shape, generator).int().add_(2**15)
    return _gumbels(generator.device, factor).index_select(0, bits).view(*shape)


# Every layer of a step asks for the same.
@lru_cache(maxsize=2)
def _gumbels(device: torch.device, factor: float) -> Tensor:
    """Returns the noise of every 16 bits, float32 (65536,)."""
    u = (torch.arange(2**16, device=device, dtype=torch.float64) + 0.5) / 2**16
    return u.log_().neg_().log_().mul_(-factor).float()


def logistic(shape: Sequence[int], generator: Generator) -> Tensor:
    """Draws the difference of two standard Gumbel variables, log(u / (1 - u)), float32."""
    # Signed 16-bit numbers: half a step up, and from -1/2..1/2 to 0..1.
    u = _bits(shape, generator).float().add_(0.5).mul_(2.0**-16).add_(0.5)
    return torch.logit(u).view(*shape)


def _bits(shape: Sequence[int], generator: Generator) -> Tensor:
    """Draws a random 16-bit number for each element, int16, flat."""
    count = torch.Size(shape).numel()
    bits = torch.empty(-(-count // 4), dtype=torch.int64, device=generator.device)
    bits.random_(-(2**63), None, generator=generator)
    return bits.view(torch.int16)[:count]
