"""One-shot masks with zeros anywhere, each layer of one sparsity."""

from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from patch_compile.errors import RecipeError
from patch_compile.learn.candidates import FreeRegions, FreeWeight, quotas
from patch_compile.learn.linears import prunable
from patch_compile.learn.model import LoadedModel
from patch_compile.learn.scores import FREE_SALIENCIES, Evidence
from patch_compile.recipe import LearnRecipe
from patch_compile.tiles.geometry import Geometry
from tests.learn.tiny import one_shot, tiny_model, write_text

SAMPLES, WINDOW = 3, 16


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return tiny_model()


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt", 4 * SAMPLES * WINDOW)


def _recipe(method: str, sparsity: float, **options: Any) -> LearnRecipe:
    return LearnRecipe(
        method=method,  # type: ignore[arg-type] # parametrized
        structure="unstructured",
        sparsity=(sparsity,),
        samples=SAMPLES,
        window=WINDOW,
        **options,
    )


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("sparsity", [0.0, 0.13, 0.5, 0.7, 1.0])
def test_budget_is_exact_and_every_layer_has_its_share(
    method: str, sparsity: float, model: LoadedModel, text: Path
) -> None:
    masks = one_shot(model, text, _recipe(method, sparsity))
    total = sum(linear.weight.numel() for linear in prunable(model.module).values())
    zeros = {name: int((~mask.keep()).sum()) for name, mask in masks.weights.items()}
    assert sum(zeros.values()) == round(sparsity * total)
    for name, mask in masks.weights.items():
        assert abs(zeros[name] - sparsity * mask.keep().size) <= 1
        assert mask.dense.all()
        assert mask.digests


def test_magnitude_needs_no_text_and_loses_the_smallest_of_a_layer(
    model: LoadedModel,
) -> None:
    masks = one_shot(model, None, _recipe("magnitude", 0.3))
    for name, linear in prunable(model.module).items():
        keep, sizes = masks.weights[name].keep(), np.abs(linear.array())
        assert sizes[~keep].max() <= sizes[keep].min()


def test_wanda_loses_the_smallest_of_each_row(model: LoadedModel, text: Path) -> None:
    masks = one_shot(model, text, _recipe("wanda", 0.3))
    for mask in masks.weights.values():
        lost = (~mask.keep()).sum(1)
        assert set(lost.tolist()) <= {int(0.3 * mask.shape[1]), int(0.3 * mask.shape[1]) + 1}


def _regions(scores: NDArray[Any], regions: Geometry, sparsity: float) -> NDArray[np.bool_]:
    free = FreeRegions([FreeWeight("w", scores, {})], regions)
    return free.cut(sparsity).weights["w"].keep()


@pytest.mark.parametrize(
    "regions", [Geometry(1, None), Geometry(None, 8), Geometry(None, None)]
)
def test_each_region_loses_its_own_lowest(regions: Geometry, rng: np.random.Generator) -> None:
    scores = rng.standard_normal((6, 20))
    keep = _regions(scores, regions, 0.35)
    grid = regions.grid((6, 20))
    for (top, bottom), (left, right) in product(pairwise(grid.rows), pairwise(grid.columns)):
        part = np.s_[top:bottom, left:right]
        assert scores[part][~keep[part]].max() < scores[part][keep[part]].min()
        assert abs((~keep[part]).sum() - 0.35 * keep[part].size) <= 1


def test_what_a_region_rounds_off_the_next_gets() -> None:
    assert quotas(np.array([[3], [3], [3], [3]]), 0.5, 0).ravel().tolist() == [2, 1, 1, 2]
    # Regions of 3 that come after 3 others.
    assert quotas(np.array([3, 3]), 0.5, 3).tolist() == [1, 1]
    assert quotas(np.full(7, 10), 0.0, 0).sum() == 0


def test_surgeon_s_scores_are_used_for_sparsegpt(model: LoadedModel, text: Path) -> None:
    named: list[str] = []
    table = dict(FREE_SALIENCIES)

    def spy(evidence: Evidence) -> Any:
        named.append("sparsegpt")
        assert evidence.gram is not None
        return table["sparsegpt"](evidence)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FREE_SALIENCIES, "sparsegpt", spy)  # type: ignore[arg-type] # a dict
        one_shot(model, text, _recipe("sparsegpt", 0.5))
    assert len(named) == 14


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "topk-ste"}, "structure | is 'unstructured', and method 'topk-ste'"),
        ({"select": "fisher"}, "select | is 'fisher', and unstructured masks have no tiles"),
        ({"tie": ("mlp",)}, "tie | is ('mlp',), and unstructured masks have no tiles"),
        ({"sparsity": (1.1,)}, "sparsity | is 1.1; expected a number from 0.0 to 1.0"),
    ],
)
def test_contradictions_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        LearnRecipe(structure="unstructured", **options)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prior": "descent"}, "prior | is 'descent', which looks for 2:4 patterns"),
        ({"select": "fisher"}, "select | is 'fisher', and unstructured masks have no tiles"),
        ({"tie": ("mlp",)}, "tie | is ('mlp',), and unstructured masks have no tiles"),
    ],
)
def test_leap_refuses_what_has_patterns_and_tiles(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        LearnRecipe(method="leap", **options)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "wanda"}, "update | is asked of method 'wanda'"),
        ({"sparsity": (0.2, 0.3)}, "sparsity | is (0.2, 0.3), and --update makes new weights"),
    ],
)
def test_updates_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        LearnRecipe(**{"method": "sparsegpt", "update": True, **options})
    assert str(caught.value).startswith(message)


def test_leap_may_be_called_what_it_is() -> None:
    recipe = LearnRecipe(method="leap", structure="unstructured", sparsity=(0.9,))
    assert recipe.free
    assert recipe.learns
