"""Patterns against numpy and the paper's matrix of six."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from patch_compile.learn.training.patterns import GumbelPattern, TopTwoPattern, top_two
from patch_compile.tiles.pattern import top2_of_4
from tests.learn.training.plain import SIX

# Few values, so that ties are common.
_SCORES = arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 5).map(lambda groups: 4 * groups)),
    elements=st.integers(-2, 2).map(float),
)


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@settings(deadline=None)
@given(_SCORES)
def test_top_two_keeps_what_numpy_keeps_ties_too(scores: np.ndarray) -> None:
    assert np.array_equal(top_two(torch.from_numpy(scores)).numpy(), top2_of_4(scores))


@pytest.mark.parametrize("pattern", [TopTwoPattern(), GumbelPattern()])
def test_a_start_is_never_far_from_the_prior(pattern: TopTwoPattern | GumbelPattern) -> None:
    saliency = torch.rand(64, 128, generator=_generator())
    hard = pattern.hard(pattern.start(saliency, _generator()))
    # Random starts of MaskLLM are a third of the prior's push: few groups change sides.
    assert (hard == top_two(saliency)).float().mean() > 0.95


def test_scores_of_equal_weights_start_equal_and_finite() -> None:
    scores = TopTwoPattern().start(
        torch.zeros(2, 8) + torch.tensor([1.0, 0.0]).repeat(4), _generator()
    )
    assert torch.isfinite(scores).all()
    torch.testing.assert_close(scores[0, 0], scores[1, 6])
    flat = TopTwoPattern().start(torch.ones(1, 4), _generator())
    assert torch.equal(flat, torch.zeros(1, 4))


def test_standardising_forgets_the_size_of_a_group() -> None:
    saliency = torch.rand(8, 16, generator=_generator()) + 0.1
    scores = TopTwoPattern().start(saliency, _generator()).view(8, 4, 4)
    torch.testing.assert_close(scores.mean(-1), torch.zeros(8, 4), rtol=0, atol=1e-5)
    torch.testing.assert_close(scores.std(-1), torch.ones(8, 4))


def test_the_hard_pattern_is_that_of_the_largest_logit() -> None:
    logits = torch.randn(3, 6, 5, generator=_generator())
    best = SIX[logits.argmax(1)].flatten(1).bool()
    assert torch.equal(GumbelPattern().hard(logits), best)
