"""Putting gates into a model, and taking them out again."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from patch_compile.errors import RecipeError
from patch_compile.learn.linears import Linear, find_linears
from patch_compile.learn.training.gate import Gate
from patch_compile.learn.training.product import masked_product

__all__ = ["MaskedLinear", "blocks_of", "gated", "recomputed"]


class MaskedLinear(nn.Module):
    """A linear layer whose weight passes a gate.

    Attributes:
        layer: the frozen layer, of whatever class.
        gate: of its weight.
    """

    def __init__(self, linear: Linear, gate: Gate) -> None:
        super().__init__()
        self.layer = linear.module
        self.gate = gate
        # Not its `matrix`: that would keep the weight as it was, beside the cast one.
        self._transposed = linear.transposed

    def forward(self, x: Tensor) -> Tensor:
        """Returns x (W M)^T + b, float (..., N), from x, float (..., K)."""
        stored = self.layer.get_parameter("weight")
        weight = stored.T if self._transposed else stored
        bias = getattr(self.layer, "bias", None)
        if self.gate.moment.opened:
            return nn.functional.linear(x, weight, bias)
        return masked_product(x, weight, bias, self.gate)


@contextmanager
def gated(
    model: PreTrainedModel,
    linears: Mapping[str, Linear],
    gates: Mapping[str, Gate],
    dtype: torch.dtype | None = None,
) -> Iterator[None]:
    """Freezes a model and puts gates before its weights; all is as before afterwards.

    Args:
        model: to learn masks of.
        linears: its linear layers that have gates, and others.
        gates: by the names of their weights.
        dtype: that linear layers compute in under autocast: their weights are kept in it,
            since autocast casts frozen ones anew each time; None leaves them.
    """
    with _frozen(model), nullcontext() if dtype is None else _cast(model, dtype):
        for name, gate in gates.items():
            _replace(model, name, MaskedLinear(linears[name], gate))
        try:
            yield
        finally:
            for name in gates:
                _replace(model, name, linears[name].module)


@contextmanager
def _frozen(model: PreTrainedModel) -> Iterator[None]:
    """Asks no gradients of a model's parameters in the body."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)


@contextmanager
def _cast(model: PreTrainedModel, dtype: torch.dtype) -> Iterator[None]:
    """Gives linear layers weights of another type; embeddings that share one keep theirs."""
    found = find_linears(model).values()
    for linear in found:
        linear.module.weight = nn.Parameter(linear.weight.detach().to(dtype), False)
    try:
        yield
    finally:
        for linear in found:
            linear.module.weight = linear.weight


def blocks_of(model: nn.Module) -> list[str]:
    """Lists the paths of a model's transformer blocks, those of transformers' own kind."""
    return [
        path
        for path, module in model.named_modules()
        if isinstance(module, GradientCheckpointingLayer)
    ]


@contextmanager
def recomputed(model: PreTrainedModel) -> Iterator[None]:
    """Lets blocks recompute their activations in the backward pass, and ends that again.

    Transformers' own switch works on blocks that train alone, in which dropouts drop.

    Raises:
        RecipeError: if the model has no such blocks.
    """
    blocks = [model.get_submodule(path) for path in blocks_of(model)]
    if not blocks:
        raise RecipeError(
            f"recompute | {type(model).__name__} has no blocks that can recompute; leave it "
            "out"
        )
    for block in blocks:
        again = partial(checkpoint, block.forward, use_reentrant=False)
        vars(block)["forward"] = again
    try:
        yield
    finally:
        for block in blocks:
            del vars(block)["forward"]


def _replace(model: nn.Module, weight: str, layer: nn.Module) -> None:
    path = weight.removesuffix(".weight")
    parent, _, child = path.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)
