"""A scorer gives the logits of the masked model, whether torch or ONNX Runtime runs it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from onnx import TensorProto, helper, save

from patch_compile.compiler import compile_model
from patch_compile.errors import MaskError, ModelError
from patch_compile.evaluation.scorers import open_scorer
from patch_compile.io.load_masks import load_masks
from patch_compile.io.masks_file import save_masks
from patch_compile.learn.model import load_model, save_checkpoint
from patch_compile.tiles.masks import Masks
from tests.evaluation.conftest import MAGNITUDE, Llama
from tests.learn.tiny import one_shot, random_ids, tiny_model, tiny_tokenizer

# Logits of the tiny models lie within 1; kernels sum 172 float32 products in other orders.
CLOSE = 1e-5


def _masked_by_hand(folder: Path, masks: Masks, ids: Any) -> Any:
    """Logits of the model whose own state dict is multiplied by the masks."""
    factory: Any = transformers.AutoModelForCausalLM
    model = factory.from_pretrained(folder).eval()
    state = model.state_dict()
    for name, mask in masks.weights.items():
        # GPT-2's Conv1D stores (K, N).
        keep = mask.keep().T if "transformer.h" in name else mask.keep()
        state[name] *= torch.from_numpy(keep.astype(np.float32))
    with torch.no_grad():
        return model(ids).logits.numpy()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_masked_torch_model_is_the_product_of_weights_and_masks(
    tmp_path: Path, kind: str
) -> None:
    save_checkpoint(tiny_model(kind, layers=1), tmp_path / "hf")
    masks = one_shot(load_model(str(tmp_path / "hf")), None, MAGNITUDE)
    ids = random_ids((2, 9))
    scorer = open_scorer(str(tmp_path / "hf"), masks)
    expected = _masked_by_hand(tmp_path / "hf", masks, ids)
    np.testing.assert_allclose(scorer.score(ids.numpy()), expected, atol=CLOSE)
    assert scorer.sparsity == pytest.approx(masks.sparsity)
    dense = open_scorer(str(tmp_path / "hf"))
    assert dense.sparsity is None
    assert np.abs(dense.score(ids.numpy()) - expected).max() > 100 * CLOSE


@pytest.mark.parametrize("masked", [False, True])
def test_onnx_and_torch_give_the_same_logits_and_tokens(llama: Llama, masked: bool) -> None:
    masks = llama.masks if masked else None
    by_torch, by_onnx = (open_scorer(str(m), masks) for m in (llama.folder, llama.onnx))
    ids = random_ids((3, 12)).numpy()
    np.testing.assert_allclose(by_onnx.score(ids), by_torch.score(ids), atol=CLOSE)
    assert by_onnx.sparsity == by_torch.sparsity
    assert by_onnx.unapplied == {}
    for special in (False, True):
        text = "w7 w8 nothing"
        assert by_onnx.encode(text, special) == by_torch.encode(text, special)


def test_a_compiled_model_holds_its_masks(llama: Llama, tmp_path: Path) -> None:
    path = compile_model(llama.onnx, llama.masks).save(tmp_path / "out")
    tokenizer = llama.onnx.parent / "tokenizer.json"
    ids = random_ids((2, 9)).numpy()
    compiled = open_scorer(str(path), None, tokenizer)
    masked = open_scorer(str(llama.folder), llama.masks)
    np.testing.assert_allclose(compiled.score(ids), masked.score(ids), atol=CLOSE)
    with pytest.raises(
        MaskError, match=r"compiled and holds its masks already; leave --masks"
    ):
        open_scorer(str(path), llama.masks, tokenizer)


def _renamed(masks: Masks) -> Masks:
    first, *others = masks.weights.values()
    # Without digests, by which an ONNX weight would be found under any name.
    strange = replace(first, name="model.layers.7.strange.weight", digests={})
    return Masks({mask.name: mask for mask in (strange, *others)})


@pytest.mark.parametrize("form", ["folder", "onnx"])
def test_unknown_masks_are_named(llama: Llama, form: str) -> None:
    masks = _renamed(load_masks(llama.masks))
    with pytest.raises(MaskError, match=r"model\.layers\.7\.strange\.weight"):
        open_scorer(str(getattr(llama, form)), masks)


@pytest.mark.parametrize("form", ["folder", "onnx"])
def test_masks_of_other_values_are_refused(llama: Llama, form: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    other = tiny_model("llama", layers=1)
    with torch.no_grad():
        for parameter in other.module.parameters():
            parameter.add_(0.01)
    save_masks(one_shot(other, None, MAGNITUDE), tmp_path / "masks.json")
    with pytest.raises(MaskError, match="was made for"):
        open_scorer(str(getattr(llama, form)), tmp_path / "masks.json")


def test_another_tokenizer_can_be_given(llama: Llama, tmp_path: Path) -> None:
    given = tmp_path / "tokenizer.json"
    text = (llama.folder / "tokenizer.json").read_text("utf-8")
    given.write_text(text.replace('"w5"', '"w999"'), "utf-8")
    scorer = open_scorer(str(llama.folder), None, given)
    assert scorer.encode("w999 w6", False) == [5, 6]


def test_tokens_that_the_model_cannot_run_are_told(llama: Llama) -> None:
    scorer = open_scorer(str(llama.folder))
    with pytest.raises(ModelError, match=r"cannot be run on \(1, 2\) tokens up to 500"):
        scorer.score(np.array([[1, 500]]))


def test_torch_encoders_are_refused(tmp_path: Path) -> None:
    config: Any = transformers.BertConfig(
        vocab_size=128, hidden_size=64, num_hidden_layers=1, num_attention_heads=4
    )
    factory: Any = transformers.BertForMaskedLM
    factory(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"is a masked language model.*expected a causal"):
        open_scorer(str(tmp_path))


def _looking_ahead(
    path: Path, ahead: float, shape: Sequence[int | str] = ("batch", "sequence")
) -> None:
    """Saves logits = onehot(ids) + ahead * the mean of them over all positions."""
    nodes = [
        helper.make_node("OneHot", ["input_ids", "depth", "values"], ["x"]),
        helper.make_node("ReduceMean", ["x", "axes"], ["all"], keepdims=1),
        helper.make_node("Mul", ["all", "ahead"], ["seen"]),
        helper.make_node("Add", ["x", "seen"], ["logits"]),
    ]
    constants = [
        helper.make_tensor("depth", TensorProto.INT64, [], [128]),
        helper.make_tensor("values", TensorProto.FLOAT, [2], [0.0, 1.0]),
        helper.make_tensor("axes", TensorProto.INT64, [1], [1]),
        helper.make_tensor("ahead", TensorProto.FLOAT, [], [ahead]),
    ]
    graph = helper.make_graph(
        nodes,
        "ahead",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [*shape, 128])],
        constants,
    )
    opset = [helper.make_opsetid("", 20)]
    save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)


def test_onnx_encoders_are_refused(llama: Llama, tmp_path: Path) -> None:
    tokenizer, path = llama.folder / "tokenizer.json", tmp_path / "m.onnx"
    _looking_ahead(path, 0.0)
    open_scorer(str(path), None, tokenizer)
    _looking_ahead(path, 0.1)
    with pytest.raises(ModelError, match=r"no causal language model: its outputs move by"):
        open_scorer(str(path), None, tokenizer)


def test_a_model_of_a_fixed_length_is_probed_at_that_length(
    llama: Llama, tmp_path: Path
) -> None:
    tokenizer, path = llama.folder / "tokenizer.json", tmp_path / "m.onnx"
    _looking_ahead(path, 0.0, (1, 7))
    open_scorer(str(path), None, tokenizer)
    _looking_ahead(path, 0.1, (1, 7))
    with pytest.raises(ModelError, match=r"no causal language model: its outputs move by"):
        open_scorer(str(path), None, tokenizer)


def test_a_missing_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        open_scorer(str(tmp_path / "none"))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer .* \| cannot be read"):
        open_scorer(str(tmp_path / "none.onnx"))
