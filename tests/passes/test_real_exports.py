"""Graphs that optimum and onnxruntime-genai's builder wrote, kept in tests/exports.

Its make.py tells how they were made. The reference is the checkpoint itself, run by torch with
masked weights: it shares nothing with the graphs but the numbers.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from patch_compile.bench.measure import bench_models
from patch_compile.compiler import compile_model, plan_model
from patch_compile.io.onnx_model import load_model
from patch_compile.passes.legal import sparse_pieces_are_24
from patch_compile.recipe import BenchRecipe, CompileRecipe
from patch_compile.runtimes.decoding import open_decoder
from patch_compile.tiles.masks import Masks
from patch_compile.verification import verify
from tests.passes.test_dialects import edited, rename
from tests.support import OLD_ONNXRUNTIME, masks_of, random_mask

EXPORTS = Path(__file__).parents[1] / "exports"
# By graph, how far the logits, which reach 0.5, may be off. fp16 has steps of 2^-11 there.
GRAPHS = {"optimum": 1e-5, "genai-fp32": 1e-5, "genai-fp16": 5e-3}
GENAI = pytest.mark.skipif(
    OLD_ONNXRUNTIME, reason="needs the GroupQueryAttention of later releases"
)
RUN = ["optimum", *(pytest.param(name, marks=GENAI) for name in ("genai-fp32", "genai-fp16"))]
QKV = "model.layers.0.attn.qkv_proj.MatMul.weight"
IDS = [3, 14, 15, 9, 26, 5, 8]


def masks() -> Masks:
    """Bands, K-strips, 8 x 8 tiles and whole weights in turn, for every linear."""
    rng = np.random.default_rng(7)
    weights = load_file(EXPORTS / "llama" / "model.safetensors")
    linears = [name for name in sorted(weights) if "proj" in name]
    shapes = ("band:8", "column:8", "8x8", "weight")
    return masks_of(
        *(
            random_mask(rng, name, weights[name], shapes[i % 4], 0.3)
            for i, name in enumerate(linears)
        )
    )


def logits_of_torch(keeps: dict[str, NDArray[np.bool_]]) -> NDArray[np.float32]:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    module: Any = transformers.LlamaForCausalLM.from_pretrained(EXPORTS / "llama")
    with torch.no_grad():
        for name, keep in keeps.items():
            module.get_parameter(name).mul_(torch.from_numpy(keep))
        found: NDArray[np.float32] = module(torch.tensor([IDS])).logits[0].numpy()
    return found


def check_reading(path: Path, expected: NDArray[np.float32], atol: float) -> None:
    """Read in three parts, the cache between them, the text gives these logits."""
    reader = open_decoder(path).reader()
    for start, stop in ((0, 3), (3, 4), (4, 7)):
        found = reader.read(IDS[start:stop]).astype(np.float32)
        np.testing.assert_allclose(found, expected[stop - 1], rtol=0, atol=atol)


@pytest.mark.parametrize("name", RUN)
def test_export_binds_compiles_verifies_and_reads_like_the_masked_checkpoint(
    tmp_path: Path, name: str
) -> None:
    path, known = EXPORTS / f"{name}.onnx", masks()
    compiled = compile_model(path, known, CompileRecipe(min_gain=0.0))
    out = compiled.save(tmp_path / "out")
    weights = compiled.report.weights
    assert {mask for weight in weights for mask in weight.masks} == set(known.weights)
    told = json.loads(out.with_name("report.json").read_text("utf-8"))["weights"]
    assert {(weight["bound_by"], weight["digest"]) for weight in told} == {("name", "match")}
    assert set(compiled.report.left_alone.values()) == {"no mask names this weight"}
    assert compiled.report.totals["eligible"] > 0
    assert sparse_pieces_are_24(load_model(out)) == []
    assert verify(path, out, known).passed
    keeps = {mask.name: mask.keep() for mask in known.weights.values()}
    dense, masked = logits_of_torch({}), logits_of_torch(keeps)
    assert np.abs(dense - masked).max() > 10 * GRAPHS[name]
    check_reading(path, dense, GRAPHS[name])
    check_reading(out, masked, GRAPHS[name])


@pytest.mark.parametrize("name", RUN[:2])
def test_export_that_is_cast_keeps_its_cache(tmp_path: Path, name: str) -> None:
    path, known = EXPORTS / f"{name}.onnx", masks()
    recipe = CompileRecipe(min_gain=0.0, dtype="fp16")
    out = compile_model(path, known, recipe).save(tmp_path / "out")
    assert verify(path, out, known).passed
    keeps = {mask.name: mask.keep() for mask in known.weights.values()}
    check_reading(out, logits_of_torch(keeps), GRAPHS["genai-fp16"])


@pytest.mark.parametrize("name", GRAPHS)
def test_export_without_names_binds_by_content(tmp_path: Path, name: str) -> None:
    copy = tmp_path / "model.onnx"
    copy.write_bytes((EXPORTS / f"{name}.onnx").read_bytes())
    plan = plan_model(edited(copy, rename), masks())
    assert {weight.bound_by for weight in plan.report.weights} == {"digest"}
    found = {mask for weight in plan.report.weights for mask in weight.masks}
    assert found == set(masks().weights)


@pytest.mark.parametrize("name", ["genai-fp32", "genai-fp16"])
def test_genai_builder_fuses_what_the_masks_keep_apart(name: str) -> None:
    plan = plan_model(EXPORTS / f"{name}.onnx", masks())
    (fused,) = [weight for weight in plan.report.weights if weight.weight == QKV]
    assert [mask.split(".")[-2] for mask in fused.masks] == ["q_proj", "k_proj", "v_proj"]


@GENAI
def test_genai_builders_graph_is_timed_whatever_it_calls_the_size_of_a_head() -> None:
    path = EXPORTS / "genai-fp32.onnx"
    recipe = BenchRecipe(tokens=(4,), rounds=5, warmup=1, threads=1)
    found = bench_models(path, path, recipe)
    assert all(row.seconds.median > 0 for row in found.rows)


def test_the_exports_are_what_they_are_said_to_be() -> None:
    """Facts of the exporters; whoever makes the files anew learns what changed."""
    kinds = {
        name: {node.op_type for node in onnx.load(EXPORTS / f"{name}.onnx").graph.node}
        for name in GRAPHS
    }
    assert "Constant" in kinds["optimum"]
    for name in ("genai-fp32", "genai-fp16"):
        assert {"GroupQueryAttention", "SkipSimplifiedLayerNormalization"} <= kinds[name]
