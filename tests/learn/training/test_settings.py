"""Published settings, and what a recipe puts in their place."""

from dataclasses import replace
from typing import Any

import pytest

from patch_compile.learn.training.schedule import Annealed
from patch_compile.learn.training.settings import settings
from patch_compile.recipe import LearnRecipe


# arXiv 2509.23410, table 6: joint at 25 and 35 %, tile at all; kappa, tau, lambda 1, lambda 2.
@pytest.mark.parametrize(
    ("method", "first", "last", "weights"),
    [
        ("patch-joint", Annealed(2.0, 25.0), Annealed(0.05, 350.0), (7.0, 10.0)),
        ("patch-tile", Annealed(2.0, 100.0), Annealed(0.05, 500.0), (3.0, 0.1)),
    ],
)
def test_patch_runs_as_published(
    method: Any, first: Annealed, last: Annealed, weights: tuple[float, float]
) -> None:
    found = settings(LearnRecipe(method=method))
    assert found.tile.at(0, 100) == first
    assert found.tile.at(99, 100).scale == last.scale
    assert found.tile.at(99, 100).temperature == pytest.approx(last.temperature)
    assert (found.density_weight, found.norm_weight) == weights
    assert found.betas == (0.9, 0.95)


def test_patterns_of_joint_run_as_in_maskllm() -> None:
    found = settings(LearnRecipe(method="patch-joint"))
    assert found.course.at(0, 100) == Annealed(4.0, 100.0)
    assert found.course.at(99, 100).scale == 500.0


@pytest.mark.parametrize(
    "method", ["topk-ste", "maskllm", "patch-tile", "patch-joint", "leap"]
)
def test_a_recipe_overrides_rates_and_weights_alone(method: Any) -> None:
    plain = settings(LearnRecipe(method=method))
    found = settings(LearnRecipe(method=method, lr=0.5, density_weight=0.0, norm_weight=2.0))
    assert found == replace(plain, lr=0.5, density_weight=0.0, norm_weight=2.0)
