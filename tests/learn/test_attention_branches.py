"""Tied heads go all the way: ranked, exported, compiled to branches, verified."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from patch_compile.compiler import compile_model
from patch_compile.learn.export import export_onnx
from patch_compile.learn.linears import prunable
from patch_compile.learn.model import LoadedModel
from patch_compile.recipe import CompileRecipe, ExportRecipe, LearnRecipe, VerifyRecipe
from patch_compile.tiles.masks import Masks
from patch_compile.verification import verify
from tests.learn.tiny import one_shot, random_ids, tiny_model, write_text
from tests.support import OLD_ONNXRUNTIME, run_ort

# float32 through one layer; sums of a few hundred products, in another order.
TOLERANCE = 2e-5
# As many of the weights as let some groups of heads go and keep others.
TIED: dict[str, Any] = {
    "method": "wanda",
    "tie": ("heads",),
    "include": ("re:.*(attn|attention).*",),
    "samples": 2,
    "window": 16,
    "sparsity": (0.25,),
}


def masked_logits(model: LoadedModel, masks: Masks, ids: Any) -> Any:
    """What torch computes with the weights that are kept."""
    linears, state, module = prunable(model.module), model.module.state_dict(), model.module
    masked = {}
    for name, mask in masks.weights.items():
        keep = torch.from_numpy(mask.keep())
        masked[name] = state[name] * (keep.T if linears[name].transposed else keep)
    with torch.no_grad():
        given = {"input_ids": ids, "use_cache": False}
        out: Any = torch.func.functional_call(module, masked, kwargs=given)
    return out.logits.numpy()


def kinds(path: Path) -> Counter[str]:
    graph = onnx.load(path, load_external_data=False).graph
    return Counter(node.op_type for node in graph.node)


@pytest.mark.parametrize(
    ("kind", "opset"),
    [
        ("llama", 20),
        ("qwen2", 20),
        ("qwen3", 20),
        ("gemma2", 20),
        ("gpt2", 20),
        ("opt", 20),
        ("llama", 23),
    ],
)
def test_tied_heads_become_branches_that_compute_the_masked_model(
    kind: str, opset: int, tmp_path: Path
) -> None:
    if opset > 22 and OLD_ONNXRUNTIME:
        pytest.skip("this ONNX Runtime reads no opset 23")
    model = tiny_model(kind, layers=1)
    masks = one_shot(model, write_text(tmp_path / "text.txt", 200), LearnRecipe(**TIED))
    path = export_onnx(model, tmp_path / "model.onnx", ExportRecipe(opset=opset), masks)
    compiled = compile_model(path, masks, CompileRecipe(min_gain=0.0))
    assert [group.lowering for group in compiled.plan.groups] == ["branches"]
    assert {weight.lowering for weight in compiled.plan.weights} == {"branches"}
    out = compiled.save(tmp_path / "out")
    # ONNX Runtime 1.32 takes rotations of opset 23 for one row alone.
    ids = random_ids((1 if opset > 22 else 2, 7))
    expected = masked_logits(model, masks, ids)
    dense = masked_logits(model, Masks({}), ids)
    assert np.abs(dense - expected).max() > 100 * TOLERANCE
    for optimise in (False, True):
        (found,) = run_ort(out, {"input_ids": ids.numpy()}, optimise=optimise).values()
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
    before, after = kinds(path), kinds(out)
    # What joins halves of a head is there twice; shapes are put together no more.
    assert after["Concat"] <= before["Concat"]
    assert after["Gather"] <= before["Gather"]
    if opset < 23:
        assert verify(path, out, masks, VerifyRecipe()).passed


def test_a_cache_keeps_heads_together(tmp_path: Path) -> None:
    model = tiny_model("llama", layers=1)
    masks = one_shot(model, write_text(tmp_path / "text.txt", 200), LearnRecipe(**TIED))
    path = export_onnx(model, tmp_path / "model.onnx", ExportRecipe(with_past=True), masks)
    compiled = compile_model(path, masks, CompileRecipe(lowering="branches"))
    assert compiled.plan.groups == ()
    (reason, *_) = {weight.reason for weight in compiled.report.weights}
    assert "which holds all heads, is an output of the graph" in reason
    assert "present" in reason
