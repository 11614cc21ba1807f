"""The graphs of three exporters: every mask finds its weight, and the outputs are right."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from patch_compile.compiler import Planned, compile_model, plan_model
from patch_compile.errors import MaskError
from patch_compile.io.onnx_model import load_model
from patch_compile.passes.legal import sparse_pieces_are_24
from patch_compile.recipe import CompileRecipe
from patch_compile.tiles.masks import Masks
from tests.passes.genai import FUSED, LAYER, feeds, genai_model
from tests.support import masks_of, random_mask, run_ort

if TYPE_CHECKING:
    from tests.passes.exports import Exported

# float32 through two layers; sums of a few hundred products, in another order.
TOLERANCE = 1e-4

QKV = f"{LAYER}.attn.qkv_proj.MatMul.weight"
Q, K, V = (f"{LAYER}.self_attn.{part}.weight" for part in FUSED)

Weights = dict[str, NDArray[np.float32]]


def masks_for(weights: Weights, names: Sequence[str] | None = None) -> Masks:
    """Masks in bands of 16, in K-strips of 16 and in 16 x 16 tiles, in turn."""
    rng = np.random.default_rng(7)
    shapes = ("band:16", "column:16", "16x16", "weight")
    return masks_of(
        *(
            random_mask(rng, name, weights[name], shapes[i % 4], 0.3)
            for i, name in enumerate(weights if names is None else names)
        )
    )


def keeps(masks: Masks) -> dict[str, NDArray[np.bool_]]:
    return {name: mask.keep() for name, mask in masks.weights.items()}


def edited(path: Path, change: Callable[[onnx.ModelProto], object]) -> Path:
    """A copy of a model, changed."""
    model = onnx.load(path)
    change(model)
    copy = path.with_name(f"{path.stem}_edited.onnx")
    onnx.save(model, copy)
    return copy


def rename(model: onnx.ModelProto) -> None:
    """Takes away every name and note by which a weight could be known."""
    for i, tensor in enumerate(model.graph.initializer):
        for node in model.graph.node:
            for at, name in enumerate(node.input):
                if name == tensor.name:
                    node.input[at] = f"t_{i}"
        tensor.name = f"t_{i}"
    for node in model.graph.node:
        node.name = ""
        del node.metadata_props[:]
    del model.metadata_props[:]


def bound_by(compiled: Planned) -> set[str]:
    return {weight.bound_by for weight in compiled.report.weights}


def bound_masks(compiled: Planned) -> set[str]:
    return {name for weight in compiled.report.weights for name in weight.masks}


def domains(path: Path) -> dict[str, int]:
    model = onnx.load(path, load_external_data=False)
    return {opset.domain: opset.version for opset in model.opset_import}


# torch.onnx.export(dynamo=True)


def test_dynamo_masks_bind_through_metadata(dynamo: "Exported") -> None:
    weights = dynamo.linears()
    plan = plan_model(dynamo.path, masks_for(weights))
    assert len(weights) == 14
    assert bound_masks(plan) == set(weights)
    assert bound_by(plan) == {"name"}
    assert all(weight.weight.startswith("val_") for weight in plan.report.weights)
    assert all(weight.digest == "match" for weight in plan.report.weights)


def test_dynamo_masks_bind_by_content_when_metadata_is_gone(dynamo: "Exported") -> None:
    weights = dynamo.linears()
    plan = plan_model(edited(dynamo.path, rename), masks_for(weights))
    assert bound_masks(plan) == set(weights)
    assert bound_by(plan) == {"digest"}


def test_dynamo_output_is_that_of_the_masked_module(
    dynamo: "Exported", tmp_path: Path, rng: np.random.Generator
) -> None:
    masks = masks_for(dynamo.linears())
    out = compile_model(dynamo.path, masks, CompileRecipe(min_gain=0.0)).save(tmp_path)
    ids = rng.integers(0, 128, (2, 6))
    expected = dynamo.masked(keeps(masks), ids)
    assert np.abs(expected - dynamo.masked({}, ids)).max() > 100 * TOLERANCE
    (found,) = run_ort(out, {"input_ids": ids}, optimise=True).values()
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
    assert domains(out) == domains(dynamo.path)


# optimum: torch.onnx.export(dynamo=False)


def test_torchscript_masks_bind_through_node_names(torchscript: "Exported") -> None:
    weights = torchscript.linears()
    plan = plan_model(torchscript.path, masks_for(weights))
    assert len(weights) == 8
    assert bound_masks(plan) == set(weights)
    assert bound_by(plan) == {"name"}
    assert all(w.weight.startswith("onnx::MatMul_") for w in plan.report.weights)


def constants(model: onnx.ModelProto) -> None:
    """Turns every weight into a Constant node, as optimum's graphs hold a third of theirs."""
    nodes = [
        helper.make_node("Constant", [], [tensor.name], value=tensor, name=f"/Constant_{i}")
        for i, tensor in enumerate(model.graph.initializer)
    ]
    products = list(model.graph.node)
    del model.graph.node[:]
    del model.graph.initializer[:]
    model.graph.node.extend([*nodes, *products])


@pytest.mark.parametrize("form", ["initializers", "constants", "nameless"])
def test_torchscript_output_is_that_of_the_masked_module(
    torchscript: "Exported", tmp_path: Path, rng: np.random.Generator, form: str
) -> None:
    changes: dict[str, Callable[[onnx.ModelProto], object]] = {
        "initializers": lambda _: None,
        "constants": constants,
        "nameless": rename,
    }
    path = edited(torchscript.path, changes[form])
    masks = masks_for(torchscript.linears())
    compiled = compile_model(path, masks, CompileRecipe(min_gain=0.0))
    out = compiled.save(tmp_path)
    x = rng.standard_normal((2, 5, 32)).astype(np.float32)
    (found,) = run_ort(out, {"x": x}, optimise=True).values()
    expected = torchscript.masked(keeps(masks), x)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
    assert bound_by(compiled) == {"digest" if form == "nameless" else "name"}


def test_torchscript_mask_of_an_absent_layer_lists_the_nearest(
    torchscript: "Exported",
) -> None:
    weight = torchscript.linears()["model.layers.0.mlp.up_proj.weight"]
    mask = random_mask(
        np.random.default_rng(0), "model.layers.9.mlp.up_proj.weight", weight + 1, "weight"
    )
    with pytest.raises(MaskError, match=r"nearest weights: .*onnx::MatMul_"):
        plan_model(torchscript.path, masks_of(mask))


# onnxruntime-genai's model builder


@pytest.fixture
def genai(tmp_path: Path, rng: np.random.Generator) -> tuple[Path, Weights]:
    path = tmp_path / "genai.onnx"
    return path, genai_model(path, rng)


def masked_copy(path: Path, weights: Weights, masks: Masks) -> Path:
    """The same model over masked weights, by plain onnx and numpy."""
    model = onnx.load(path)
    masked = {
        name: np.where(masks.weights[name].keep(), weight, np.float32(0))
        if name in masks.weights
        else weight
        for name, weight in weights.items()
    }
    arrays = {
        name.replace(".weight", ".MatMul.weight").replace("self_attn", "attn"): weight
        for name, weight in masked.items()
    }
    arrays[QKV] = np.concatenate([masked[name] for name in (Q, K, V)])
    for tensor in model.graph.initializer:
        if tensor.name in arrays:
            array = np.ascontiguousarray(arrays[tensor.name].T)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    copy = path.with_name("masked.onnx")
    onnx.save(model, copy)
    return copy


def check_genai(path: Path, weights: Weights, masks: Masks, lowering: Any = "auto") -> Planned:
    """Compiles, and compares every output with that of the masked copy."""
    recipe = CompileRecipe(lowering=lowering, min_gain=0.0)
    compiled = compile_model(path, masks, recipe)
    out = compiled.save(path.parent / "out")
    given = feeds(np.random.default_rng(3))
    expected = run_ort(masked_copy(path, weights, masks), given, optimise=False)
    plain = run_ort(path, given, optimise=False)
    assert np.abs(plain["logits"] - expected["logits"]).max() > 100 * TOLERANCE
    for optimise in (False, True):
        found = run_ort(out, given, optimise=optimise)
        assert list(found) == list(expected) == list(plain)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=0, atol=TOLERANCE)
    assert domains(out) == domains(path) == {"": 22, "com.microsoft": 1}
    assert sparse_pieces_are_24(load_model(out)) == []
    return compiled


@pytest.mark.parametrize("lowering", ["auto", "dense", "columns", "reduction", "cover"])
def test_genai_outputs_are_those_of_the_masked_model(
    genai: tuple[Path, Weights], lowering: str
) -> None:
    path, weights = genai
    compiled = check_genai(path, weights, masks_for(weights), lowering)
    assert bound_masks(compiled) == set(weights)
    assert bound_by(compiled) == {"name"}
    (fused,) = [w for w in compiled.report.weights if w.weight == QKV]
    assert fused.masks == (Q, K, V)
    assert fused.shape == (sum(FUSED.values()), 64)
    planned = plan_model(path, masks_for(weights)).report
    assert {weight.digest for weight in planned.weights} == {"match"}


@pytest.mark.parametrize("names", [[Q], [V], [Q, K], [K, V]])
def test_genai_weight_is_masked_in_part_where_parts_have_masks(
    genai: tuple[Path, Weights], names: list[str]
) -> None:
    path, weights = genai
    check_genai(path, weights, masks_for(weights, names))


def test_genai_mlp_becomes_branches_beside_the_fused_projection(
    genai: tuple[Path, Weights],
) -> None:
    path, weights = genai
    rng = np.random.default_rng(7)
    dense = np.arange(6) % 3 == 1
    tied = {"gate": "band", "up": "band", "down": "column"}
    masks = masks_of(
        *(
            random_mask(
                rng,
                f"{LAYER}.mlp.{part}_proj.weight",
                weights[f"{LAYER}.mlp.{part}_proj.weight"],
                f"{kind}:16",
                dense=dense[:, None] if kind == "band" else dense[None],
            )
            for part, kind in tied.items()
        )
    )
    compiled = check_genai(path, weights, masks)
    (group,) = compiled.plan.groups
    assert (group.lowering, len(group.weights)) == ("branches", 3)


def test_genai_fused_weight_without_names_is_found_by_its_slices(
    genai: tuple[Path, Weights],
) -> None:
    path, weights = genai
    plan = plan_model(edited(path, rename), masks_for(weights))
    assert bound_by(plan) == {"digest"}
    assert (Q, K, V) in {weight.masks for weight in plan.report.weights}


def test_genai_digest_mismatch_names_the_part(genai: tuple[Path, Weights]) -> None:
    path, weights = genai
    other = {**weights, K: weights[K] + np.float32(1)}
    with pytest.raises(MaskError) as caught:
        plan_model(path, masks_for(other))
    assert f"weight '{K}' | differs from the weight its mask was made for" in str(caught.value)


def test_genai_model_compiled_twice_says_so_for_every_mask(
    genai: tuple[Path, Weights], tmp_path: Path
) -> None:
    path, weights = genai
    masks = masks_for(weights)
    out = compile_model(path, masks, CompileRecipe(min_gain=0.0)).save(tmp_path / "one")
    again = plan_model(out, masks)
    assert again.report.weights == ()
    assert {name: again.report.left_alone[name] for name in weights} == dict.fromkeys(
        weights, "already compiled"
    )
