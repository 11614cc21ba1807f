"""The product of an input with a masked weight, x (W M)^T, and its gradients.

M itself is never made: with S = W P, a sparse tile, W M = S + T (W - S). W M is made for the
forward pass and again for the backward pass, slice by slice, from patterns that are drawn
again: between the two at most a byte a weight is kept, where to draw again costs more.

The penalties of the objective act on M alone, so their gradients join those of the loss here,
in the backward pass; a graph of their own would store every mask.

N: out features. K: in features. R, C: tiles along N and K. n: rows of a slice.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Generator, Tensor

from patch_compile.learn.training.gate import Gate, Pull

__all__ = ["masked_product"]


def masked_product(x: Tensor, weight: Tensor, bias: Tensor | None, gate: Gate) -> Tensor:
    """Returns x (W M)^T + b, (..., N).

    Under autocast, and only there, the gate's moment has a type: what autocast computes in.

    Args:
        x: (..., K), of two dimensions or more.
        weight: W, (N, K); it gets no gradient.
        bias: (N,), or None; it gets no gradient either.
        gate: of the weight.
    """
    # Here, where autograd sees it: autocast would cast within, and keep what it was cast from.
    x = x.to(gate.moment.dtype or x.dtype)
    product: Tensor = _Product.apply(x, weight, bias, gate.logits, gate.stored, gate)  # type: ignore[no-untyped-call]
    return product


class _Product(torch.autograd.Function):
    """x (W M)^T + b, and the gradients of x, the tiles and the pattern."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tiles: Tensor,
        stored: Tensor,
        gate: Gate,
    ) -> Tensor:
        ctx.gate = gate
        masked = _empty(gate, weight)
        kept = torch.empty_like(weight, dtype=torch.int8) if gate.pattern.kept else None
        norm = torch.zeros((), dtype=torch.float64, device=weight.device)
        density, generator = gate.drawn(tiles)
        for part in _parts(gate, weight, density, stored, generator):
            made = part.write_masked(masked)
            # Within a slice float32 is exact enough, and several times as fast.
            norm += torch.linalg.vector_norm(made).square()
            if kept is not None:
                kept[part.rows] = part.pattern
        gate.gained = ((1 - density) * gate.gains).sum(dtype=torch.float64)
        gate.norm = norm
        ctx.save_for_backward(x, weight, tiles, stored, kept)
        return torch.nn.functional.linear(x, masked, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, tiles, stored, kept = ctx.saved_tensors
        gate: Gate = ctx.gate
        # Spent: a layer that runs again in the same pass is not pulled again.
        pull, gate.pull = gate.pull, Pull()
        wants_x, *_, wants_tiles, wants_pattern, _ = ctx.needs_input_grad
        density, generator = gate.drawn(tiles)
        masked = _empty(gate, weight)
        sums = pull.budget * gate.gains.expand_as(tiles) if wants_tiles else None
        of_pattern = torch.empty_like(stored) if wants_pattern else None
        # The gradient of W M.
        slope = grads[0].flatten(0, -2).T @ x.flatten(0, -2)
        for part in _parts(gate, weight, density, stored, generator, kept):
            grad = pull.added(slope[part.rows].float(), part.write_masked(masked))
            if of_pattern is not None:
                of_pattern[part.rows] = gate.pattern.gradient(
                    part.share(grad), part.remembered, gate.moment.pattern
                )
            if sums is not None:
                # d(W M)/dT = W - S, summed over the tile.
                gate.total((part.weight - part.sparse).mul_(grad), part.rows, sums)
        of_tiles = None if sums is None else gate.tile_gradient(density, sums)
        of_x = grads[0] @ masked if wants_x else None
        return of_x, None, None, of_tiles, of_pattern, None


def _empty(gate: Gate, weight: Tensor) -> Tensor:
    return torch.empty_like(weight, dtype=gate.moment.dtype or weight.dtype)


@dataclass(frozen=True, eq=False)
class _Part:
    """A slice of rows of a masked weight.

    Attributes:
        rows: of the weight.
        weight: W, float32 (n, K).
        dense: T, broadcasts to it.
        pattern: P, broadcasts to it.
        remembered: what the pattern's gradient needs.
    """

    rows: slice
    weight: Tensor
    dense: Tensor
    pattern: Tensor
    remembered: Any

    @cached_property
    def sparse(self) -> Tensor:
        """S, float32 (n, K)."""
        return self.weight * self.pattern

    def write_masked(self, masked: Tensor) -> Tensor:
        """Writes W M to its rows of `masked`, (N, K), and returns it, float32 (n, K)."""
        into = masked[self.rows]
        if into.dtype == torch.float32:
            return torch.lerp(self.sparse, self.weight, self.dense, out=into)
        made = torch.lerp(self.sparse, self.weight, self.dense)
        into.copy_(made)
        return made

    def share(self, grad: Tensor) -> Tensor:
        """Returns the gradient of the pattern, (n, K), from that of W M."""
        share = grad * self.weight
        return share.addcmul_(share, self.dense, value=-1.0)


def _parts(
    gate: Gate,
    weight: Tensor,
    density: Tensor,
    stored: Tensor,
    generator: Generator | None,
    kept: Tensor | None = None,
) -> Iterator[_Part]:
    """Draws a gate's patterns, slice by slice; the same at every call of one moment.

    Where there is noise, it is drawn in the order of the rows.

    Args:
        gate: of the weight.
        weight: W, (N, K).
        density: T, (R, C).
        stored: of the pattern, N rows.
        generator: of the pattern's noise, at its start; None draws none.
        kept: the patterns of an earlier call, (N, K), in place of new ones.
    """
    widened = gate.widened(density)
    for rows in gate.slices(density.device):
        drawn = (
            gate.pattern.sample(stored[rows], gate.moment.pattern, generator)
            if kept is None
            else (kept[rows], None)
        )
        yield _Part(rows, weight[rows].float(), gate.heightened(widened, rows), *drawn)
