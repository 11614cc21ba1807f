"""SparseGPT with new weights: masks, checkpoint and what goes on from them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from patch_compile.api import learn_candidates
from patch_compile.errors import ModelError, RecipeError
from patch_compile.io.digests import digests
from patch_compile.learn import update
from patch_compile.learn.linears import prunable
from patch_compile.learn.model import LoadedModel, load_model, save_checkpoint
from patch_compile.learn.obs import TwoOfFour, inverse_factor, prune_columns
from patch_compile.learn.update import update_weights
from patch_compile.recipe import LearnRecipe
from patch_compile.tiles.masks import Masks
from tests.learn.tiny import one_shot, tiny_model, write_text
from tests.learn.training.taught import (
    counting_ids,
    loss_of,
    masked_loss,
    taught_model,
    write_counting,
)

SAMPLES, WINDOW = 3, 16
KINDS = ["llama", "qwen2", "qwen3", "mistral", "gemma", "gpt2", "opt"]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt", SAMPLES * WINDOW)


def _recipe(**options: Any) -> LearnRecipe:
    given = {"method": "sparsegpt", "samples": SAMPLES, "window": WINDOW, "update": True}
    return LearnRecipe(**{**given, **options})


def _updated(model: LoadedModel, text: Path, folder: Path, recipe: LearnRecipe) -> Masks:
    return update_weights(model, [text], recipe, folder).cut(recipe.aim)


@pytest.mark.parametrize("kind", KINDS)
def test_masks_belong_to_the_checkpoint(kind: str, text: Path, tmp_path: Path) -> None:
    model = tiny_model(kind)
    before = {name: w.clone() for name, w in model.module.state_dict().items()}
    masks = _updated(model, text, tmp_path, _recipe(tile="48x40"))
    loaded = load_model(str(tmp_path))
    masked = prunable(loaded.module)
    for name, mask in masks.weights.items():
        weight = masked[name].array()
        assert mask.digests == digests(weight)
        assert (weight[~mask.keep()] == 0.0).all()
        assert mask.scores is None
    others = {n: w for n, w in loaded.module.state_dict().items() if n not in masks.weights}
    assert all(torch.equal(weight, before[name]) for name, weight in others.items())
    assert abs(masks.sparsity - 0.25) < 0.01


def test_tiles_are_those_chosen_beforehand_and_dense_ones_keep_every_weight(
    text: Path, tmp_path: Path
) -> None:
    recipe = _recipe(tile="band:24")
    chosen = one_shot(tiny_model(), text, _recipe(tile="band:24", update=False))
    model = tiny_model()
    before = {n: linear.array().copy() for n, linear in prunable(model.module).items()}
    masks = _updated(model, text, tmp_path, recipe)
    assert any(mask.dense.any() and not mask.dense.all() for mask in masks.weights.values())
    for name, linear in prunable(model.module).items():
        mask, weight = masks.weights[name], linear.array()
        assert np.array_equal(mask.dense, chosen.weights[name].dense)
        dense = np.repeat(mask.dense[:, 0], mask.grid.heights)
        # A band that stays dense is whole rows, which have nothing to make up for.
        assert np.array_equal(weight[dense], before[name][dense])
        assert not np.array_equal(weight[~dense], before[name][~dense]) or dense.all()


def test_first_block_is_pruned_on_its_own_inputs_and_the_next_on_pruned_ones(
    text: Path, tmp_path: Path
) -> None:
    model, dense = tiny_model(), tiny_model()
    tokenize: Any = dense.tokenizer
    _updated(model, text, tmp_path, _recipe(tile="weight", sparsity=(0.5,)))
    ids = torch.tensor(tokenize(text.read_text(), add_special_tokens=False).input_ids)
    for layer in range(2):
        name = f"model.layers.{layer}.mlp.up_proj"
        # What the layer reads when the layers before it are pruned, its own block is not.
        reading: Any = tiny_model().module
        state = model.module.state_dict()
        earlier = {n: w for n, w in state.items() if f"layers.{layer - 1}." in n}
        reading.load_state_dict(earlier, strict=False)
        seen: list[Any] = []
        reading.get_submodule(name).register_forward_pre_hook(
            lambda _, x, seen=seen: seen.append(x[0].detach())
        )
        reading(input_ids=ids.reshape(SAMPLES, WINDOW))
        x = seen[0].flatten(0, 1).double()
        weight = dense.module.get_parameter(f"{name}.weight").detach().numpy()
        factor = inverse_factor((x.T @ x).numpy())
        expected = prune_columns(weight, factor, TwoOfFour(np.zeros(weight.shape, np.bool_)))
        found = model.module.get_parameter(f"{name}.weight").detach().numpy()
        # Sums of another order: a choice between equals may fall otherwise.
        assert (np.abs(found - expected.weight) > 1e-3).mean() < 0.01


def test_new_weights_cost_less_than_the_old_ones_masked(tmp_path: Path) -> None:
    source = str(taught_model(tmp_path / "taught"))
    text = write_counting(tmp_path / "text.txt", 64)
    options = {"tile": "weight", "samples": 32, "window": 32, "sparsity": (0.4,)}
    model = load_model(source)
    masks = one_shot(model, text, _recipe(**options, update=False))
    old = masked_loss(model, masks)
    _updated(model, text, tmp_path / "new", _recipe(**options))
    with torch.no_grad():
        new = float(loss_of(model.module, counting_ids(64, seed=5)))
        dense = float(loss_of(load_model(source).module, counting_ids(64, seed=5)))
    assert new - dense < 0.7 * (old - dense)


@pytest.mark.parametrize("sparsity", [0.3, 0.6])
def test_unstructured_weights_meet_the_budget_to_one_weight(
    sparsity: float, text: Path, tmp_path: Path
) -> None:
    model = tiny_model()
    recipe = _recipe(structure="unstructured", sparsity=(sparsity,))
    masks = _updated(model, text, tmp_path, recipe)
    linears = prunable(load_model(str(tmp_path)).module)
    zeros = sum(int((linear.array() == 0.0).sum()) for linear in linears.values())
    total = sum(linear.weight.numel() for linear in linears.values())
    assert zeros == round(sparsity * total)
    for mask in masks.weights.values():
        assert mask.zeros() / np.prod(mask.shape) == pytest.approx(sparsity, abs=1e-3)


def test_ffn_only_leaves_attention_as_it_was(text: Path, tmp_path: Path) -> None:
    model = tiny_model()
    before = {n: linear.array().copy() for n, linear in prunable(model.module).items()}
    recipe = _recipe(tile="weight", include=("*.mlp.*",), sparsity=(0.5,))
    masks = _updated(model, text, tmp_path, recipe)
    assert all(".mlp." in name for name in masks.weights)
    for name, linear in prunable(model.module).items():
        assert np.array_equal(linear.array(), before[name]) == (".mlp." not in name)


def test_weights_of_another_model_are_not_lost(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tiny_model("gpt2"), tmp_path / "theirs")
    before = (tmp_path / "theirs" / "model.safetensors").read_bytes()
    with monkeypatch.context() as patch:
        # It is told before the work.
        patch.delattr(update, "rank_tiles")
        with pytest.raises(ModelError, match=r"holds weights of another model, 'model\.saf"):
            _updated(tiny_model(), text, tmp_path / "theirs", _recipe(tile="48x40"))
    assert (tmp_path / "theirs" / "model.safetensors").read_bytes() == before
    for sparsity in (0.25, 0.4):
        recipe = _recipe(tile="48x40", sparsity=(sparsity,))
        _updated(tiny_model(), text, tmp_path / "own", recipe)
    record = json.loads((tmp_path / "own" / "update.json").read_text("utf-8"))
    assert record["made_by"]["recipe"]["sparsity"] == [0.4]


def test_a_weight_outside_of_the_blocks_is_refused(text: Path, tmp_path: Path) -> None:
    model = tiny_model()
    module: Any = model.module
    module.model.norm = torch.nn.Linear(64, 64)
    with pytest.raises(ModelError, match=r"'model\.norm\.weight' \| lies in no block"):
        _updated(model, text, tmp_path, _recipe(tile="weight", sparsity=(0.5,)))


def test_another_sparsity_cannot_be_cut(text: Path, tmp_path: Path) -> None:
    found = update_weights(tiny_model(), [text], _recipe(), tmp_path)
    with pytest.raises(
        RecipeError, match=r"sparsity \| is 0\.1, and the weights were updated"
    ):
        found.cut(0.1)


@pytest.mark.parametrize(
    ("options", "folder", "message"),
    [
        ({}, False, r"checkpoint \| is missing"),
        ({"update": False}, True, r"checkpoint \| is .*, and no weight changes"),
    ],
)
def test_an_update_and_a_folder_for_it_come_together(
    options: dict[str, Any], folder: bool, message: str, text: Path, tmp_path: Path
) -> None:
    save_checkpoint(tiny_model(layers=1), tmp_path / "model")
    place = tmp_path / "new" if folder else None
    with pytest.raises(RecipeError, match=message):
        learn_candidates(str(tmp_path / "model"), text, _recipe(**options), checkpoint=place)


def test_python_gets_masks_and_a_folder(text: Path, tmp_path: Path) -> None:
    save_checkpoint(tiny_model(layers=1), tmp_path / "model")
    new = tmp_path / "new"
    found = learn_candidates(str(tmp_path / "model"), text, _recipe(), checkpoint=new)
    assert found.cut(0.25).made_by["recipe"]["update"] is True
    assert (new / "model.safetensors").exists()
