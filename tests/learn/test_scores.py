import numpy as np
import pytest

from patch_compile.learn.obs import TwoOfFour, inverse_factor, prune_columns, residuals
from patch_compile.learn.scores import (
    COSTS,
    FREE_SALIENCIES,
    SALIENCIES,
    Evidence,
    needs_fisher,
    needs_grams,
    needs_moments,
)
from patch_compile.recipe import LearnRecipe
from patch_compile.tiles.pattern import top2_of_4


@pytest.fixture
def evidence() -> Evidence:
    weight = np.array([[1.0, -2.0], [-3.0, 0.5]], np.float32)
    fisher = np.array([[1.0, 2.0], [0.25, 4.0]], np.float32)
    return Evidence(weight, np.array([4.0, 9.0]), fisher)


def test_magnitude_is_the_size_of_the_weight(evidence: Evidence) -> None:
    assert SALIENCIES["magnitude"](evidence).tolist() == [[1.0, 2.0], [3.0, 0.5]]


def test_wanda_is_the_size_times_the_norm_of_the_input(evidence: Evidence) -> None:
    saliency = SALIENCIES["wanda"](evidence)
    assert saliency.dtype == np.float32
    assert saliency.tolist() == [[2.0, 6.0], [6.0, 1.5]]


def test_fisher_cost_is_the_squared_gradient_times_the_squared_weight(
    evidence: Evidence,
) -> None:
    saliency = np.zeros((2, 2), np.float32)
    assert COSTS["fisher"](evidence, saliency).tolist() == [[1.0, 8.0], [2.25, 1.0]]


def test_error_cost_is_the_squared_saliency(evidence: Evidence) -> None:
    saliency = np.array([[3.0, 2.0]], np.float32)
    assert COSTS["error"](evidence, saliency).tolist() == [[9.0, 4.0]]


def test_sparsegpt_leaves_the_choice_of_the_moved_weights(rng: np.random.Generator) -> None:
    weight, x = rng.standard_normal((6, 12), np.float32), rng.standard_normal((40, 12))
    gram = (x.T @ x).astype(np.float32)
    none = TwoOfFour(np.zeros(weight.shape, np.bool_))
    pruned = prune_columns(weight, inverse_factor(gram), none)
    known = Evidence(weight, gram=gram)
    assert np.array_equal(top2_of_4(SALIENCIES["sparsegpt"](known)), pruned.keep)
    # Nothing has moved before the first group of four.
    still = FREE_SALIENCIES["sparsegpt"](known)
    np.testing.assert_allclose(still, np.abs(weight) * residuals(gram), rtol=1e-6)
    np.testing.assert_allclose(SALIENCIES["sparsegpt"](known)[:, :4], still[:, :4], rtol=1e-5)
    assert not np.array_equal(top2_of_4(still), pruned.keep)


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("structure", ["2:4", "unstructured"])
@pytest.mark.parametrize("select", ["fisher", "error"])
def test_needs_are_what_the_functions_read(
    method: str, structure: str, select: str, rng: np.random.Generator
) -> None:
    free = structure == "unstructured"
    recipe = LearnRecipe(
        method=method,  # type: ignore[arg-type] # parametrized
        structure=structure,  # type: ignore[arg-type] # parametrized
        select=None if free else select,  # type: ignore[arg-type] # parametrized
    )
    values = rng.random((4, 8), np.float32)
    known = Evidence(
        values,
        np.ones(8) if needs_moments(recipe) else None,
        values if needs_fisher(recipe) else None,
        np.eye(8, dtype=np.float32) if needs_grams(recipe) else None,
    )
    table = FREE_SALIENCIES if free else SALIENCIES
    saliency = table[method](known)
    assert np.isfinite(saliency).all()
    if not free:
        assert np.isfinite(COSTS[select](known, saliency)).all()
    assert (needs_moments(recipe), needs_fisher(recipe), needs_grams(recipe)) == (
        method == "wanda",
        select == "fisher" and not free,
        method == "sparsegpt",
    )
