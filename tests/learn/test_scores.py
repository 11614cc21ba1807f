import numpy as np
import pytest

from patch_compile.learn.scores import (
    COSTS,
    SALIENCIES,
    Evidence,
    needs_fisher,
    needs_moments,
)
from patch_compile.recipe import LearnRecipe


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


@pytest.mark.parametrize("method", ["magnitude", "wanda"])
@pytest.mark.parametrize("select", ["fisher", "error"])
def test_needs_are_what_the_functions_read(
    method: str, select: str, evidence: Evidence
) -> None:
    recipe = LearnRecipe(method=method, select=select)  # type: ignore[arg-type] # parametrized
    known = Evidence(
        evidence.weight,
        evidence.moment if needs_moments(recipe) else None,
        evidence.fisher if needs_fisher(recipe) else None,
    )
    cost = COSTS[select](known, SALIENCIES[method](known))
    assert np.isfinite(cost).all()
    assert (needs_moments(recipe), needs_fisher(recipe)) == (
        method == "wanda",
        select == "fisher",
    )
