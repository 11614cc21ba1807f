import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from patch_compile.errors import RecipeError
from patch_compile.io.digests import digest
from patch_compile.io.load_masks import load_masks
from patch_compile.io.masks_file import save_masks
from patch_compile.learn.linears import prunable
from patch_compile.learn.model import LoadedModel
from patch_compile.learn.oneshot import rank_tiles
from patch_compile.recipe import LearnRecipe
from patch_compile.tiles.masks import Masks
from tests.learn.tiny import one_shot, random_ids, tiny_model, write_text

SAMPLES, WINDOW = 3, 16
GEOMETRIES = ("32x32", "48x40", "band:16", "band:24", "column:16", "column:40", "weight")


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return tiny_model()


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt", 4 * SAMPLES * WINDOW)


def _recipe(**options: Any) -> LearnRecipe:
    return LearnRecipe(**{"samples": SAMPLES, "window": WINDOW, **options})


def _same(a: Masks, b: Masks) -> bool:
    return a.weights.keys() == b.weights.keys() and all(
        np.array_equal(mask.bits(), b.weights[name].bits())
        and np.array_equal(mask.dense, b.weights[name].dense)
        and np.array_equal(mask.scores, b.weights[name].scores)  # type: ignore[arg-type] # there
        for name, mask in a.weights.items()
    )


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("sparsity", [0.1, 0.25, 0.4])
def test_zeros_meet_the_budget_to_within_half_a_tile(
    model: LoadedModel, geometry: str, sparsity: float
) -> None:
    recipe = _recipe(method="magnitude", select="error", tile=geometry, sparsity=(sparsity,))
    masks = one_shot(model, None, recipe)
    total = sum(linear.weight.numel() for linear in prunable(model.module).values())
    zeros = sum(int((~mask.keep()).sum()) for mask in masks.weights.values())
    largest = max(int(mask.grid.areas.max()) for mask in masks.weights.values())
    # A tile has area / 2 zeros; the last one is taken or left, whichever ends nearer.
    assert abs(zeros - sparsity * total) <= largest / 2 / 2 + 1
    assert masks.made_by["sparsity"] == zeros / total
    assert {mask.geometry for mask in masks.weights.values()} == {geometry}


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_ends_of_the_range_are_exact(
    model: LoadedModel, geometry: str, sparsity: float
) -> None:
    recipe = _recipe(method="magnitude", select="error", tile=geometry, sparsity=(sparsity,))
    masks = one_shot(model, None, recipe)
    for mask in masks.weights.values():
        assert mask.dense.all() if sparsity == 0.0 else not mask.dense.any()
        n, k = mask.shape
        assert mask.zeros() == sparsity * n * k
        assert mask.scores is not None
        assert (mask.scores > 0).all()


def _scores(masks: Masks, name: str) -> NDArray[np.float32]:
    scores = masks.weights[name].scores
    assert scores is not None
    return scores


def _two_best(saliency: NDArray[Any]) -> NDArray[np.bool_]:
    keep = np.zeros(saliency.shape, np.bool_)
    for row in range(saliency.shape[0]):
        for start in range(0, saliency.shape[1], 4):
            best = sorted(range(start, start + 4), key=lambda c: -saliency[row, c])[:2]
            keep[row, best] = True
    return keep


def _inputs(model: LoadedModel, windows: Any) -> dict[str, Any]:
    """Every linear's input over all windows, (tokens, K)."""
    seen: dict[str, Any] = {}
    handles: list[Any] = []
    for name, linear in prunable(model.module).items():

        def note(_: Any, inputs: Any, __: Any, name: str = name) -> None:
            seen[name] = inputs[0].reshape(-1, inputs[0].shape[-1])

        handles.append(linear.module.register_forward_hook(note))
    with torch.no_grad():
        model.module(input_ids=windows)
    for handle in handles:
        handle.remove()
    return seen


def test_wanda_keeps_the_best_two_by_weight_times_input_norm(
    model: LoadedModel, tmp_path: Path
) -> None:
    # As many tokens as the windows need: the choice of windows is then known.
    text = write_text(tmp_path / "exact.txt", SAMPLES * WINDOW)
    masks = one_shot(model, text, _recipe(select="error", tile="weight", sparsity=(0.5,)))
    inputs = _inputs(model, random_ids((SAMPLES * WINDOW,)).reshape(SAMPLES, WINDOW))
    for name, linear in prunable(model.module).items():
        saliency = np.abs(linear.array()) * inputs[name].double().norm(dim=0).numpy()
        assert np.array_equal(masks.weights[name].keep(), _two_best(saliency))
        # Squares of float32 products, summed in another order.
        np.testing.assert_allclose(
            _scores(masks, name),
            [[(saliency**2)[~_two_best(saliency)].sum()]],
            rtol=1e-5,
        )


def _gradients(model: LoadedModel, windows: Any) -> dict[str, NDArray[np.float64]]:
    linears = prunable(model.module)
    squares = {name: np.zeros(linear.shape) for name, linear in linears.items()}
    for window in windows:
        loss = model.module(input_ids=window[None], labels=window[None]).loss
        weights = [linear.weight for linear in linears.values()]
        for name, gradient in zip(linears, torch.autograd.grad(loss, weights), strict=True):
            squares[name] += linears[name].matrix(gradient).double().numpy() ** 2
    return squares


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_fisher_score_sums_what_the_lost_weights_of_a_tile_cost(
    kind: str, tmp_path: Path
) -> None:
    model = tiny_model(kind, layers=1)
    text = write_text(tmp_path / "exact.txt", SAMPLES * WINDOW)
    masks = one_shot(model, text, _recipe(method="magnitude", tile="48x40"))
    squares = _gradients(model, random_ids((SAMPLES * WINDOW,)).reshape(SAMPLES, WINDOW))
    for name, linear in prunable(model.module).items():
        weight = linear.array().astype(np.float64)
        cost = np.where(_two_best(np.abs(weight)), 0.0, squares[name] * weight**2)
        n, k = linear.shape
        expected = [
            [cost[r : r + 48, c : c + 40].sum() for c in range(0, k, 40)]
            for r in range(0, n, 48)
        ]
        # Float32 gradients from two runs.
        np.testing.assert_allclose(_scores(masks, name), expected, rtol=1e-3)


def test_sparse_tiles_are_the_cheapest_per_zero_of_the_whole_model(
    model: LoadedModel, text: Path
) -> None:
    masks = one_shot(model, text, _recipe(tile="48x40"))
    sparse, dense = [], []
    for mask in masks.weights.values():
        assert mask.scores is not None
        price = mask.scores.astype(np.float64) / mask.grid.areas
        sparse += price[~mask.dense].tolist()
        dense += price[mask.dense].tolist()
    assert len(sparse) > 10
    assert max(sparse) <= min(dense)


def test_dense_tiles_keep_everything_and_sparse_ones_two_of_four(
    model: LoadedModel, text: Path
) -> None:
    for mask in one_shot(model, text, _recipe(tile="band:24")).weights.values():
        kept = mask.keep().reshape(mask.shape[0], -1, 4).sum(axis=2)
        dense = np.repeat(mask.dense[:, 0], mask.grid.heights)
        assert (kept[dense] == 4).all()
        assert (kept[~dense] == 2).all()


def test_same_seed_gives_the_same_masks_and_another_does_not(
    model: LoadedModel, text: Path
) -> None:
    first, same, other = (one_shot(model, text, _recipe(seed=seed)) for seed in (3, 3, 4))
    assert _same(first, same)
    assert not _same(first, other)


def test_one_calibration_serves_several_tiles_and_sparsities(
    model: LoadedModel, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes = [
        _recipe(tile="band:16", sparsity=(0.1,)),
        _recipe(tile="48x40", sparsity=(0.4,)),
    ]
    apart = [one_shot(model, text, recipe) for recipe in recipes]
    runs: list[int] = []
    forward = type(model.module).forward

    def count(*arguments: Any, **options: Any) -> Any:
        runs.append(1)
        return forward(*arguments, **options)

    monkeypatch.setattr(type(model.module), "forward", count)
    ranked = rank_tiles(model, [text], recipes)
    together = [found.cut(r.sparsity[0]) for found, r in zip(ranked, recipes, strict=True)]
    assert len(runs) == SAMPLES
    for masks, expected in zip(together, apart, strict=True):
        assert _same(masks, expected)
        assert masks.made_by == expected.made_by


def test_recipes_that_need_different_calibrations_are_refused(
    model: LoadedModel, text: Path
) -> None:
    with pytest.raises(RecipeError, match="share no calibration"):
        rank_tiles(model, [text], [_recipe(), _recipe(seed=1)])


def test_magnitude_with_error_neither_reads_a_text_nor_runs_the_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the model ran")

    model = tiny_model()
    monkeypatch.setattr(type(model.module), "forward", refuse)
    recipe = _recipe(method="magnitude", select="error", tile="weight", sparsity=(0.5,))
    masks = one_shot(model, None, recipe)
    for name, linear in prunable(model.module).items():
        assert np.array_equal(masks.weights[name].keep(), _two_best(np.abs(linear.array())))
    assert masks.made_by["data"] == []


@pytest.mark.parametrize(
    ("method", "select"), [("wanda", "error"), ("wanda", "fisher"), ("magnitude", "fisher")]
)
def test_other_choices_need_a_text(model: LoadedModel, method: str, select: str) -> None:
    with pytest.raises(RecipeError, match=r"data \| is missing"):
        one_shot(model, None, _recipe(method=method, select=select))


def test_model_is_not_changed(text: Path) -> None:
    model = tiny_model()
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    one_shot(model, text, _recipe())
    after = model.module.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(p.requires_grad and p.grad is None for p in model.module.parameters())


def test_masks_survive_their_file(model: LoadedModel, text: Path, tmp_path: Path) -> None:
    masks = one_shot(model, text, _recipe(include=("*.mlp.*",), tile="48x40"))
    save_masks(masks, tmp_path / "masks.json")
    loaded = load_masks(tmp_path / "masks.json")
    assert _same(masks, loaded)
    assert loaded.made_by == masks.made_by
    assert len(masks.weights) == 6


def test_file_tells_how_the_masks_were_made(model: LoadedModel, text: Path) -> None:
    made_by = one_shot(model, text, _recipe(ignore=("*.q_proj.*",))).made_by
    assert made_by["method"] == "one-shot wanda"
    assert made_by["model"] == "tiny-llama"
    assert made_by["data"] == ["text.txt"]
    assert made_by["recipe"]["ignore"] == ["*.q_proj.*"]
    assert made_by["recipe"]["tile"] == "128x128"
    assert made_by["versions"]["torch"] == torch.__version__
    assert str(text.parent) not in json.dumps(made_by)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_masks_carry_the_digest_of_the_stored_weight(dtype: str) -> None:
    model = tiny_model("gpt2", layers=1, dtype=dtype)
    recipe = _recipe(method="magnitude", select="error")
    masks = one_shot(model, None, recipe)
    for name, linear in prunable(model.module).items():
        stored = linear.weight.detach().T.contiguous().view(torch.uint8).numpy()
        assert masks.weights[name].digests[dtype] == digest(stored)


def test_bf16_weights_are_learned_from(text: Path) -> None:
    masks = one_shot(tiny_model(dtype="bfloat16"), text, _recipe(tile="band:16"))
    assert abs(masks.sparsity - 0.25) < 0.01


def test_progress_ends_with_all_windows_and_all_weights(
    model: LoadedModel, text: Path
) -> None:
    seen: list[tuple[int, int, str]] = []
    one_shot(model, text, _recipe(), progress=lambda *step: seen.append(step))
    assert (SAMPLES, SAMPLES, "calibrating") in seen
    assert seen[-1] == (14, 14, "ranking weights")
