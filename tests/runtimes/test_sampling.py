"""Drawing tokens: transformers' own filters are the reference."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from patch_compile.recipe import GenerateRecipe
from patch_compile.runtimes.sampling import next_token, probabilities

LOGITS = st.lists(st.integers(-40, 40), min_size=1, max_size=12, unique=True).map(
    lambda steps: np.array(steps, np.float32) / 4
)


def filtered(logits: NDArray[Any], recipe: GenerateRecipe) -> NDArray[np.float64]:
    """What transformers leaves, in its order: temperature, top-k, top-p."""
    torch = pytest.importorskip("torch")
    process = pytest.importorskip("transformers.generation.logits_process")
    scores = torch.tensor(logits.astype(np.float64))[None]
    if recipe.temperature is not None:
        scores = process.TemperatureLogitsWarper(recipe.temperature)(None, scores)
    if recipe.top_k is not None:
        scores = process.TopKLogitsWarper(recipe.top_k)(None, scores)
    if recipe.top_p is not None and recipe.top_p < 1:
        scores = process.TopPLogitsWarper(recipe.top_p)(None, scores)
    found: NDArray[np.float64] = scores.softmax(-1)[0].numpy()
    return found


@given(
    LOGITS,
    st.none() | st.sampled_from([0.25, 1.0, 1.7]),
    st.none() | st.integers(1, 14),
    # Odd shares: sums of likelihoods that reach one of them exactly are a matter of rounding.
    st.none() | st.sampled_from([0.0517, 0.331, 0.7193, 0.9571, 1.0]),
)
def test_what_is_drawn_from_is_what_transformers_leaves(
    logits: NDArray[Any], temperature: float | None, k: int | None, p: float | None
) -> None:
    recipe = GenerateRecipe(temperature=temperature, top_k=k, top_p=p)
    found = probabilities(logits, recipe)
    assert found.sum() == pytest.approx(1, rel=1e-12)
    np.testing.assert_allclose(found, filtered(logits, recipe), rtol=1e-9, atol=1e-12)


def test_tokens_come_as_often_as_they_are_likely() -> None:
    logits = np.log(np.array([0.1, 0.2, 0.3, 0.4], np.float32))
    recipe = GenerateRecipe(temperature=1.0)
    draws = (np.arange(10_000) + 0.5) / 10_000
    counts = np.bincount([next_token(logits, recipe, draw) for draw in draws])
    np.testing.assert_allclose(counts, [1000, 2000, 3000, 4000], atol=1)


@given(LOGITS, st.sampled_from([0.0, 0.5, 1 - 2**-53]))
def test_a_draw_at_the_edge_gives_a_token_that_can_come(
    logits: NDArray[Any], draw: float
) -> None:
    recipe = GenerateRecipe(temperature=0.5, top_p=0.7)
    token = next_token(logits, recipe, draw)
    assert probabilities(logits, recipe)[token] > 0


def test_greedy_takes_the_first_of_the_likeliest() -> None:
    assert next_token(np.array([1, 3, 3, 2], np.float16), GenerateRecipe(), 0.99) == 1


def test_logits_of_a_token_that_never_comes() -> None:
    logits = np.array([-np.inf, 0, -np.inf, 0], np.float32)
    found = probabilities(logits, GenerateRecipe(temperature=2.0))
    np.testing.assert_array_equal(found, [0, 0.5, 0, 0.5])
