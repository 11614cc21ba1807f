"""torch and ONNX models share every step behind the logits."""

import math
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from patch_compile.errors import ModelError, RecipeError
from patch_compile.evaluation.evaluate import evaluate
from patch_compile.evaluation.settings import EvalRecipe
from patch_compile.learn.model import load_model
from tests.evaluation.conftest import Llama

# Perplexities of float32 logits whose sums run in another order.
SAME = 1e-5


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("stride", [None, 20])
def test_torch_and_onnx_have_the_same_perplexity(
    llama: Llama, masked: bool, stride: int | None
) -> None:
    masks = llama.masks if masked else None
    recipe = EvalRecipe(tokens=170, window=32, stride=stride)
    by_torch, by_onnx = (
        evaluate(model, recipe, masks=masks, data=llama.text)
        for model in (llama.folder, llama.onnx)
    )
    assert by_torch.perplexity is not None
    assert by_onnx.perplexity is not None
    assert by_onnx.perplexity.value == pytest.approx(by_torch.perplexity.value, rel=SAME)
    taken = by_onnx.perplexity
    step = stride or 32
    assert taken.windows == (170 - 32) // step + 1
    assert taken.dropped == 170 - 32 - (taken.windows - 1) * step
    assert (taken.window, taken.stride) == (32, step)
    assert taken.predictions == 31 + (taken.windows - 1) * min(step, 31)
    assert (by_torch.tasks, by_onnx.tasks) == ({}, {})


def test_perplexity_is_that_of_the_models_own_loss(llama: Llama) -> None:
    found = evaluate(llama.folder, EvalRecipe(tokens=96, window=32), data=llama.text)
    words = llama.text.read_text("utf-8").split()[:96]
    ids = torch.tensor([int(word.removeprefix("w")) for word in words]).reshape(3, 32)
    with torch.no_grad():
        loss = load_model(str(llama.folder)).module(input_ids=ids, labels=ids).loss
    assert found.perplexity is not None
    assert found.perplexity.value == pytest.approx(math.exp(loss.item()), rel=SAME)


def test_masks_cost_perplexity_or_gain_it_but_change_it(llama: Llama) -> None:
    recipe = EvalRecipe(window=32)
    dense, masked = (
        evaluate(llama.folder, recipe, masks=masks, data=llama.text)
        for masks in (None, llama.masks)
    )
    assert dense.perplexity is not None
    assert masked.perplexity is not None
    assert abs(dense.perplexity.value / masked.perplexity.value - 1) > 100 * SAME
    assert (dense.sparsity, masked.sparsity) == (None, pytest.approx(0.3, abs=0.02))


def test_there_must_be_something_to_evaluate(llama: Llama) -> None:
    with pytest.raises(RecipeError, match="give --data TEXT or --tasks NAMES"):
        evaluate(llama.folder)


def test_a_missing_text_shows_before_the_model_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none\.txt' \| cannot be read"):
        evaluate(tmp_path / "no-model", data=tmp_path / "none.txt")
    (tmp_path / "short.txt").write_text("w1 w2", "utf-8")
    with pytest.raises(ModelError, match="does not exist"):
        evaluate(tmp_path / "no-model", data=tmp_path / "short.txt")


def test_a_short_text_is_told(llama: Llama) -> None:
    with pytest.raises(RecipeError, match=r"has 200 tokens, 600 were asked for"):
        evaluate(llama.folder, EvalRecipe(tokens=600), data=llama.text)
    with pytest.raises(RecipeError, match=r"window \| is 512; expected 2 to 200"):
        evaluate(llama.folder, data=llama.text)


@pytest.mark.skipif(
    find_spec("lm_eval") is None, reason="needs lm-evaluation-harness: the extra `eval`"
)
@pytest.mark.filterwarnings("default")
def test_torch_and_onnx_answer_alike(llama: Llama, tmp_path: Path) -> None:
    rows = [
        f'{{"query": "w{i} w{i + 1}", "choices": ["w{i + 2}", "w{i + 3} w5"], "gold": 1}}'
        for i in range(20)
    ]
    (tmp_path / "count.jsonl").write_text("\n".join(rows), "utf-8")
    recipe = EvalRecipe(tasks=("count",))
    by_torch, by_onnx = (
        evaluate(model, recipe, masks=llama.masks, task_dir=tmp_path)
        for model in (llama.folder, llama.onnx)
    )
    assert by_torch.tasks == by_onnx.tasks
    assert by_onnx.tasks["count"].questions == 20
    assert by_onnx.perplexity is None
