"""W M itself, as the product's own result for the identity."""

import torch
from torch import Tensor

from patch_compile.learn.training.gate import Gate
from patch_compile.learn.training.product import masked_product


def masked(gate: Gate, weight: Tensor) -> Tensor:
    """Returns W M, (N, K); its gradient is that of the product's output, without rounding."""
    one = torch.eye(weight.shape[1], dtype=weight.dtype)
    return masked_product(one, weight, None, gate).T
