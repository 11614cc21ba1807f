"""Every family of models that is promised: one-shot, learned, tied weights, biases."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from patch_compile.compiler import compile_model
from patch_compile.errors import ModelError
from patch_compile.learn.calibrate import calibrate
from patch_compile.learn.export import export_onnx
from patch_compile.learn.linears import prunable
from patch_compile.learn.model import load_model, save_checkpoint
from patch_compile.learn.questions import questions
from patch_compile.learn.training.learned import learn_gates
from patch_compile.recipe import CompileRecipe, ExportRecipe, LearnRecipe, VerifyRecipe
from patch_compile.verification import verify
from tests.learn.tiny import one_shot, random_ids, tiny_config, tiny_model, write_text

# What is pruned of a layer, and of the ends of the model.
LINEARS = {
    "llama": (7, 0),
    "qwen2": (7, 0),
    "qwen3": (7, 0),
    "mistral": (7, 0),
    "gemma": (7, 0),
    "gemma2": (7, 0),
    "gemma3": (7, 0),
    # q, k and v are one weight, gate and up another.
    "phi3": (4, 0),
    # q, k and v are one weight.
    "gpt2": (4, 0),
    "opt": (6, 0),
    # The head's own layer; its decoder is tied to the embeddings.
    "bert": (6, 1),
}
SMALL: dict[str, Any] = {"samples": 2, "window": 16, "tile": "band:8", "sparsity": (0.3,)}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt", 200)


@pytest.mark.parametrize("kind", LINEARS)
@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "topk-ste", "patch-joint"])
def test_masks_of_every_family_meet_the_budget_and_change_nothing(
    kind: str, method: str, text: Path, tmp_path: Path
) -> None:
    model = tiny_model(kind, layers=1)
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    recipe = LearnRecipe(method=method, steps=2, holdout=2, **SMALL)  # type: ignore[arg-type]
    if recipe.learns:
        masks = learn_gates(model, [text], recipe, tmp_path).cut(0.3)
    else:
        masks = one_shot(model, text, recipe)
    a_layer, ends = LINEARS[kind]
    assert len(masks.weights) == a_layer + ends
    # Half a band of 8 x 172, in zeros, over 40,000 weights.
    assert masks.sparsity == pytest.approx(0.3, abs=0.01)
    # Biases, tied weights and embeddings too.
    after = model.module.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("kind", LINEARS)
def test_tied_weights_and_heads_are_left_alone(kind: str) -> None:
    model: Any = tiny_model(kind, layers=1).module
    embedding = model.get_input_embeddings().weight
    for name, linear in prunable(model).items():
        assert linear.weight is not embedding, name
        assert linear.module is not model.get_output_embeddings(), name


@pytest.mark.parametrize("kind", LINEARS)
def test_masks_of_every_family_go_all_the_way(kind: str, text: Path, tmp_path: Path) -> None:
    """Learned, exported, compiled and verified on ONNX Runtime."""
    # Its layers are of two kinds.
    model = tiny_model(kind, layers=2 if kind == "gemma2" else 1)
    recipe = LearnRecipe(method="topk-ste", steps=2, holdout=2, **SMALL)
    masks = learn_gates(model, [text], recipe, tmp_path / "run").cut(0.3)
    onnx = export_onnx(model, tmp_path / "model.onnx", ExportRecipe(), masks)
    compiled = compile_model(onnx, masks, CompileRecipe(min_gain=0.0))
    lowerings = {w.masks[0]: w.lowering for w in compiled.report.weights}
    bound = {name for weight in compiled.report.weights for name in weight.masks}
    assert bound == set(masks.weights)
    assert set(lowerings.values()) & {"columns", "branches", "sink-order"}
    found = verify(onnx, compiled.save(tmp_path / "out"), masks, VerifyRecipe())
    assert found.passed, found.to_json()
    assert found.unapplied == {}


def test_an_encoder_is_loaded_with_its_masked_head(tmp_path: Path) -> None:
    saved = tiny_model("bert", layers=1)
    save_checkpoint(saved, tmp_path)
    loaded = load_model(str(tmp_path))
    assert type(loaded.module).__name__ == "BertForMaskedLM"
    assert loaded.mask_token == 1
    ids = random_ids((2, 8))
    assert torch.equal(loaded.module(ids).logits, saved.module(ids).logits)
    assert tiny_model("llama", layers=1).mask_token is None


def test_an_encoder_without_a_head_is_refused(tmp_path: Path) -> None:
    from transformers import AutoModel

    save_checkpoint(tiny_model("bert", layers=1), tmp_path)
    factory: Any = AutoModel
    factory.from_config(tiny_config("bert", 1)).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"lacks \d+ weights \['cls"):
        load_model(str(tmp_path))


def test_a_masked_model_needs_a_mask_token() -> None:
    model = tiny_model("bert", layers=1)
    tokenizer: Any = model.tokenizer
    tokenizer.mask_token = None
    with pytest.raises(ModelError, match="its tokenizer has no mask token"):
        _ = model.mask_token


def test_fisher_of_an_encoder_is_of_hidden_tokens() -> None:
    model = tiny_model("bert", layers=1)
    module: Any = model.module
    windows = random_ids((2, 16))
    linears = prunable(module)
    name = "bert.encoder.layer.0.output.dense.weight"
    expected = np.zeros(linears[name].shape)
    for window in windows:
        read, answers = questions(window[None], 1)
        loss = module(input_ids=read, labels=answers).loss
        (gradient,) = torch.autograd.grad(loss, linears[name].weight)
        expected += gradient.double().numpy() ** 2
    found = calibrate(
        module, linears, windows.numpy(), moments=False, fisher=True, mask_token=1
    )
    # The same float32 gradients; only the order of two additions may differ.
    np.testing.assert_allclose(found.fisher[name], expected, rtol=1e-4, atol=1e-12)
