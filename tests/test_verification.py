"""What `verify` says of models that are no causal language models."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import patch_compile as pc
from tests.decoders import VOCABULARY, tokenizer
from tests.support import masks_of, random_mask, random_weight


def _encoder(path: Path) -> tuple[Path, pc.Masks]:
    """Logits are a masked product over a token's row and the mean of all rows."""
    rng = np.random.default_rng(0)
    weight = random_weight(rng, VOCABULARY, 16)
    nodes = [
        helper.make_node("Gather", ["rows", "input_ids"], ["each"]),
        helper.make_node("ReduceMean", ["each", "one"], ["mean"], keepdims=1),
        helper.make_node("Add", ["each", "mean"], ["x"]),
        helper.make_node("MatMul", ["x", "fc.weight"], ["logits"]),
    ]
    rows = rng.standard_normal((VOCABULARY, 16)).astype(np.float32)
    tensors = {"rows": rows, "one": np.array([1]), "fc.weight": weight.T.copy()}
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "encoder",
        [info("input_ids", TensorProto.INT64, ["batch", "sequence"])],
        [info("logits", TensorProto.FLOAT, ["batch", "sequence", VOCABULARY])],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return path, masks_of(random_mask(rng, "fc.weight", weight, "band:4"))


def test_an_encoder_is_compared_on_the_text_and_has_no_perplexity(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, masks = _encoder(tmp_path / "model.onnx")
    text = tokenizer(tmp_path) / "text.txt"
    text.write_text(" ".join(f"w{i % 7}" for i in range(64)), "utf-8")
    compiled = pc.compile_model(model, masks).save(tmp_path / "out")
    recipe = pc.VerifyRecipe(tokens=64, window=16)
    found = pc.verify(model, compiled, masks, recipe, data=text)
    assert found.passed
    assert found.comparison.outputs[0].shape == (1, 16, VOCABULARY)
    assert (found.perplexity, found.tokens) == ({}, 0)
    (said,) = caplog.messages
    assert said.startswith("perplexity | is not told: a later token moves")
