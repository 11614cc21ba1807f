"""The objective against the paper's equation under torch's autograd."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from patch_compile.learn.questions import UNASKED, questions
from patch_compile.learn.training.gate import Gate, Moment
from patch_compile.learn.training.objective import Penalties, language_loss
from patch_compile.learn.training.patterns import FixedPattern
from patch_compile.learn.training.schedule import Annealed
from patch_compile.tiles.geometry import Geometry
from tests.learn.training import plain
from tests.learn.training.products import masked

ANNEALED = Annealed(0.8, 20.0)
LAMBDA_1, LAMBDA_2 = 5.0, 3.0


def _gates() -> tuple[list[Gate], list[Tensor]]:
    seeded = torch.Generator().manual_seed(0)
    gates, weights = [], []
    for name, shape in (("a", (12, 16)), ("b", (8, 32))):
        weight = torch.randn(shape, generator=seeded)
        grid = Geometry.parse("4x8").grid(shape)
        tiles = 0.1 * torch.randn(grid.tiles, generator=seeded)
        pattern = FixedPattern()
        stored = pattern.start(weight.abs(), seeded)
        moment = Moment(ANNEALED, ANNEALED)
        gates.append(Gate(name, grid, pattern, moment, tiles=tiles, stored=stored))
        weights.append(weight)
    return gates, weights


@pytest.mark.parametrize("variant", ["paper", "code"])
@pytest.mark.parametrize("target", [0.55, 0.95])
def test_penalties_have_the_equations_values_and_gradients(
    variant: str, target: float
) -> None:
    gates, weights = _gates()
    progress, share = 0.25, 0.5
    leaves = [gate.tiles.detach().clone().requires_grad_() for gate in gates]
    masks = [
        plain.merged(
            plain.expand(
                plain.soft_tiles(leaf, 0.0, 0.0, ANNEALED.temperature, ANNEALED.scale),
                4,
                8,
                gate.grid.shape,
            ),
            gate.stored.float(),
        )
        for leaf, gate in zip(leaves, gates, strict=True)
    ]
    size = sum(weight.numel() for weight in weights)
    density = torch.stack([mask.sum() for mask in masks]).sum() / size
    products = [w * m for w, m in zip(weights, masks, strict=True)]
    if variant == "paper":
        ratio: Any = sum(p.square().sum() for p in products)
        ratio = ratio / sum(w.square().sum() for w in weights)
    else:
        ratio = sum(p.norm() for p in products) / sum(w.norm() for w in weights)
        ratio = (1 - progress) * ratio
    value = LAMBDA_1 * (density - target).abs() - LAMBDA_2 * ratio
    (share * value).backward()

    penalties = Penalties(
        density=LAMBDA_1,
        norm=LAMBDA_2,
        variant=variant,
        target=target,
        size=size,
        squares={g.name: float(w.square().sum()) for g, w in zip(gates, weights, strict=True)},
    )
    products = [masked(gate, weight) for gate, weight in zip(gates, weights, strict=True)]
    found = penalties.apply(gates, progress, share)
    # The loss itself is nothing here: what is left are the penalties.
    sum((0.0 * product).sum() for product in products).backward()  # type: ignore[union-attr] # tensors
    assert found == pytest.approx(float(value.detach()), rel=1e-5)
    for gate, leaf in zip(gates, leaves, strict=True):
        torch.testing.assert_close(gate.tiles.grad, leaf.grad, rtol=1e-4, atol=1e-7)


def test_the_loss_of_a_text_is_that_of_its_next_tokens() -> None:
    logits = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[1, 2, 3, 4, 5], [6, 0, 1, 2, 3]])
    expected = [
        -logits[b, t].log_softmax(-1)[ids[b, t + 1]] for b in range(2) for t in range(4)
    ]
    torch.testing.assert_close(
        language_loss(logits, questions(ids, None)[1], None), torch.stack(expected).mean()
    )


def test_distillation_is_the_divergence_from_the_dense_model() -> None:
    seeded = torch.Generator().manual_seed(0)
    logits, dense = torch.randn(2, 2, 5, 7, generator=seeded)
    p, q = dense.softmax(-1), logits.softmax(-1)
    expected = (p * (p / q).log()).sum(-1).mean()
    ids = torch.zeros(2, 5, dtype=torch.int64)
    torch.testing.assert_close(language_loss(logits, ids, dense), expected)
    assert float(language_loss(dense, ids, dense)) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("distill", [False, True])
@pytest.mark.parametrize("vocabulary", [7, 2**21 // 3])
def test_the_loss_has_the_gradient_that_autograd_finds(vocabulary: int, distill: bool) -> None:
    # The larger vocabulary needs several slices.
    seeded = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 8, vocabulary, generator=seeded)
    dense = torch.randn(1, 8, vocabulary, generator=seeded) if distill else None
    answers = torch.tensor([[3, UNASKED, 0, 6, 5, UNASKED, 1, 2]])
    mine, plain = (logits.clone().requires_grad_() for _ in range(2))
    if dense is None:
        expected = nn.functional.cross_entropy(plain[0], answers[0], ignore_index=UNASKED)
    else:
        p, q = dense.softmax(-1), plain.softmax(-1)
        expected = (p * (p / q).log()).sum(-1).mean()
    (3.0 * expected).backward()
    found = language_loss(mine, answers, dense)
    (3.0 * found).backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(mine.grad, plain.grad, rtol=1e-4, atol=1e-8)
