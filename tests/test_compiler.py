"""The main job at the level of its two functions: what is kept, reported and refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from patch_compile.compiler import compile_model
from patch_compile.errors import InternalError, ModelError
from patch_compile.io.onnx_model import load_model
from patch_compile.passes.sites import ROLE
from patch_compile.recipe import CompileRecipe
from patch_compile.tiles.geometry import Geometry
from patch_compile.tiles.weight_mask import WeightMask, from_keep
from tests.support import (
    FLOATS,
    Linear,
    band_mask,
    contents,
    linear_model,
    masked_product,
    masks_of,
    random_mask,
    random_weight,
    run_ort,
    three_linears,
)

# float32 sums of at most 48 products of numbers below 4 in another order.
TOLERANCE = 1e-4

FREE = CompileRecipe(min_gain=0.0)


# What is kept


def test_outputs_keep_their_names_and_order(tmp_path: Path, rng: np.random.Generator) -> None:
    path, masks, weights = three_linears(tmp_path, rng)
    out = compile_model(path, masks, FREE).save(tmp_path / "out")
    x = rng.standard_normal((2, 3, 48)).astype(np.float32)
    found = run_ort(out, {"x": x}, optimise=True)
    assert list(found) == ["y_c", "y_a", "y_b"]
    for name, weight in weights.items():
        expected = masked_product(x, weight, masks.weights[f"{name}.weight"].keep())
        np.testing.assert_allclose(found[f"y_{name}"], expected, rtol=0, atol=TOLERANCE)


def test_model_in_memory_compiles_like_the_file(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    path, masks, _ = three_linears(tmp_path, rng)
    one = compile_model(str(path), masks).save(tmp_path / "one")
    two = compile_model(load_model(path), masks).save(tmp_path / "two")
    files, again = contents(one.parent), contents(two.parent)
    # Only the reports know what the file was called.
    reports = {name for name in files if files[name] != again[name]}
    assert reports == {"report.html", "report.json"}
    assert json.loads(files["report.json"]) == {
        **json.loads(again["report.json"]),
        "inputs": {"model": "model.onnx"},
    }


def test_input_files_are_only_read(tmp_path: Path, rng: np.random.Generator) -> None:
    (tmp_path / "in").mkdir()
    path, masks, _ = three_linears(tmp_path / "in", rng, external=True)
    before = contents(path.parent)
    compile_model(path, masks, FREE).save(tmp_path / "out")
    assert contents(path.parent) == before


def function_model(path: Path, weight: NDArray[Any]) -> Path:
    """The product lies in a function of another domain, which calls a function itself."""
    inner = helper.make_function(
        "my.inner",
        "Product",
        ["a", "b"],
        ["c"],
        [helper.make_node("MatMul", ["a", "b"], ["c"])],
        [helper.make_opsetid("", 20)],
    )
    outer = helper.make_function(
        "my.outer",
        "Linear",
        ["u", "v"],
        ["w"],
        [
            helper.make_node("Product", ["u", "v"], ["c"], domain="my.inner"),
            helper.make_node("Relu", ["c"], ["w"]),
        ],
        [helper.make_opsetid("", 20), helper.make_opsetid("my.inner", 1)],
    )
    node = helper.make_node("Linear", ["x", "fc.weight"], ["y"], domain="my.outer", name="n")
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 48])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 32])],
        [numpy_helper.from_array(np.ascontiguousarray(weight.T), "fc.weight")],
    )
    opsets = {"": 20, "my.inner": 1, "my.outer": 1, "com.microsoft": 1}
    model = helper.make_model(
        graph,
        functions=[inner, outer],
        opset_imports=[helper.make_opsetid(*opset) for opset in opsets.items()],
        ir_version=10,
    )
    onnx.save(model, path)
    return path


def test_functions_are_inlined_and_compiled(tmp_path: Path, rng: np.random.Generator) -> None:
    weight = random_weight(rng, 32, 48)
    mask = band_mask(rng, "fc.weight", weight)
    path = function_model(tmp_path / "model.onnx", weight)
    compiled = compile_model(path, masks_of(mask), CompileRecipe(lowering="columns"))
    out = compiled.save(tmp_path / "out")
    model = onnx.load(out)
    assert list(model.functions) == []
    assert [w.lowering for w in compiled.report.weights] == ["columns"]
    x = rng.standard_normal((3, 48)).astype(np.float32)
    expected = np.maximum(masked_product(x, weight, mask.keep()), 0)
    for optimise in (False, True):
        found = run_ort(out, {"x": x}, optimise=optimise)["y"]
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def test_every_opset_import_is_kept(tmp_path: Path, rng: np.random.Generator) -> None:
    weight = random_weight(rng, 32, 48)
    path = function_model(tmp_path / "model.onnx", weight)
    out = compile_model(path, masks_of(band_mask(rng, "fc.weight", weight))).save(tmp_path)
    kept = {opset.domain: opset.version for opset in onnx.load(out).opset_import}
    assert kept == {"": 20, "my.inner": 1, "my.outer": 1, "com.microsoft": 1}


def test_names_that_collide_with_ours_are_left_to_the_model(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    weight = random_weight(rng, 32, 48)
    mask = band_mask(rng, "fc.weight", weight)
    path = linear_model([Linear("fc", weight)], tmp_path / "plain.onnx")
    recipe = CompileRecipe(lowering="columns")
    ours = onnx.load(compile_model(path, masks_of(mask), recipe).save(tmp_path / "out"))
    taken = [
        *(tensor.name for tensor in ours.graph.initializer),
        *(name for node in ours.graph.node for name in node.output if "/patch/" in name),
    ]
    assert len(taken) >= 5
    model = onnx.load(path)
    for name in taken:
        model.graph.node.append(helper.make_node("Relu", ["y_fc"], [name], name=name))
        value = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        model.graph.output.append(value)
    onnx.save(model, path)
    out = compile_model(path, masks_of(mask), recipe).save(tmp_path / "again")
    x = rng.standard_normal((2, 3, 48)).astype(np.float32)
    expected = masked_product(x, weight, mask.keep())
    found = run_ort(out, {"x": x}, optimise=False)
    assert list(found) == ["y_fc", *taken]
    np.testing.assert_allclose(found["y_fc"], expected, rtol=0, atol=TOLERANCE)
    for name in taken:
        np.testing.assert_array_equal(found[name], np.maximum(found["y_fc"], 0))


# Bytes


def special_weight(rng: np.random.Generator, dtype: str) -> NDArray[Any]:
    """Values that a multiplication by zero would spoil: NaN with payload, Inf, -0.0."""
    weight = random_weight(rng, 32, 48, dtype)
    bits = weight.view(f"u{weight.itemsize}")
    quiet = np.array(np.nan, weight.dtype).view(bits.dtype) | 5
    odd = [quiet, *np.array([np.inf, -np.inf, -0.0], weight.dtype).view(bits.dtype)]
    where = rng.random(weight.shape) < 0.3
    bits[where] = rng.choice(np.array(odd, bits.dtype), int(where.sum()))
    return weight


def pieces_of(path: Path) -> dict[str, NDArray[Any]]:
    """The tensors of the pieces on disk by role, as unsigned integers, (K', N')."""
    model = onnx.load(path)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        roles = [entry.value for entry in node.metadata_props if entry.key == ROLE]
        if roles:
            tensor = tensors[node.input[1]]
            width = numpy_helper.to_array(tensor).itemsize
            bits = np.frombuffer(tensor.raw_data, f"u{width}")
            found[roles[0]] = bits.reshape(tuple(tensor.dims))
    return found


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("form", ["matmul", "gemm_b", "constant"])
def test_masking_zeroes_what_goes_and_keeps_every_other_bit(
    tmp_path: Path, rng: np.random.Generator, dtype: str, form: str
) -> None:
    weight = special_weight(rng, dtype)
    mask = band_mask(rng, "fc.weight", weight)
    path = linear_model([Linear("fc", weight, form)], tmp_path / "m.onnx", lead=(3,))
    recipe = CompileRecipe(lowering="columns", check_digests=False)
    found = pieces_of(compile_model(path, masks_of(mask), recipe).save(tmp_path / "out"))
    bits = weight.view(f"u{weight.itemsize}")
    expected = np.where(mask.keep(), bits, np.zeros_like(bits))
    dense = np.arange(32) // 8 % 2 == 0
    np.testing.assert_array_equal(found["dense"], expected[dense].T)
    np.testing.assert_array_equal(found["sparse24"], expected[~dense].T)


def test_half_precision_model_computes_what_its_masked_copy_computes(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    weight = random_weight(rng, 32, 48, "float16")
    mask = band_mask(rng, "fc.weight", weight)
    path = linear_model([Linear("fc", weight)], tmp_path / "model.onnx")
    out = compile_model(path, masks_of(mask), FREE).save(tmp_path / "out")
    copy = linear_model(
        [Linear("fc", np.where(mask.keep(), weight, np.float16(0)))], tmp_path / "copy.onnx"
    )
    x = rng.standard_normal((2, 3, 48)).astype(np.float16)
    found = run_ort(out, {"x": x}, optimise=False)["y_fc"]
    assert found.dtype == np.float16
    # Sums of 48 products near 10 round in steps of 2^-7; kernels of other widths may differ.
    expected = run_ort(copy, {"x": x}, optimise=False)["y_fc"].astype(np.float32)
    np.testing.assert_allclose(found.astype(np.float32), expected, rtol=0, atol=0.05)


@pytest.mark.parametrize("lowering", ["auto", "dense", "whole"])
def test_weight_of_zeros_compiles(
    tmp_path: Path, rng: np.random.Generator, lowering: Any
) -> None:
    weight = np.zeros((16, 32), np.float32)
    grid = Geometry(8, 8).grid((16, 32))
    nothing = from_keep(
        "fc.weight", grid, np.zeros(grid.tiles, np.bool_), np.zeros((16, 32), np.bool_)
    )
    path = linear_model([Linear("fc", weight)], tmp_path / "model.onnx")
    out = compile_model(path, masks_of(nothing), CompileRecipe(lowering=lowering)).save(
        tmp_path / "out"
    )
    x = rng.standard_normal((1, 2, 32)).astype(np.float32)
    assert not run_ort(out, {"x": x}, optimise=False)["y_fc"].any()


# Saving


def failing(_: Any, __: Any = None) -> str:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    "target",
    [
        "patch_compile.io.slot_writer.SlotWriter.write",
        "patch_compile.report.Report.to_json",
    ],
)
def test_failed_save_leaves_the_earlier_output_untouched(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    path, masks, _ = three_linears(tmp_path, rng)
    out = tmp_path / "out"
    compile_model(path, masks).save(out)
    before = contents(out)
    again = compile_model(path, masks, CompileRecipe(lowering="dense"))
    monkeypatch.setattr(target, lambda *_, **__: failing(None))
    with pytest.raises((OSError, ModelError), match="No space left on device"):
        again.save(out)
    assert contents(out) == before


def test_piece_that_turns_out_not_24_is_never_written(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    """The keep bits are read again when the model is written, and may have changed."""
    weight = random_weight(rng, 16, 32)
    good = random_mask(rng, "fc.weight", weight, "weight", dense=np.array([[False]]))
    bits = good.bits().copy()
    mask = WeightMask(good.name, good.grid, good.dense, lambda: bits)
    path = linear_model([Linear("fc", weight)], tmp_path / "model.onnx")
    compiled = compile_model(path, masks_of(mask))
    bits[3] = 0xFF
    with pytest.raises(InternalError, match="is not 2:4"):
        compiled.save(tmp_path / "out")
    assert contents(tmp_path / "out") == {}


def test_compiled_model_moves_with_its_folder(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    path, masks, _ = three_linears(tmp_path, rng)
    out = compile_model(path, masks).save(tmp_path / "one")
    x = rng.standard_normal((2, 3, 48)).astype(np.float32)
    expected = run_ort(out, {"x": x}, optimise=False)
    shutil.move(tmp_path / "one", tmp_path / "two")
    found = run_ort(tmp_path / "two" / "compiled.onnx", {"x": x}, optimise=False)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


def test_progress_of_saving_ends_at_all_bytes(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    path, masks, _ = three_linears(tmp_path, rng)
    seen: list[tuple[int, int, str]] = []
    compile_model(path, masks).save(tmp_path / "out", lambda *step: seen.append(step))
    assert max(step[0] for step in seen) == seen[0][1]
    assert len({step[1] for step in seen}) == 1


# One weight, two products


def test_weight_multiplied_both_ways_round_is_left_alone(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    """A square weight would fit its mask either way; only one of them is right."""
    weight = random_weight(rng, 16, 16)
    path = linear_model(
        [Linear("a", weight), Linear("b", random_weight(rng, 16, 16), "transpose")],
        tmp_path / "model.onnx",
    )
    model = load_model(path)
    turn = next(node for node in model.graph if node.op_type == "Transpose")
    turn.replace_input_with(0, model.graph.initializers["a.weight"])
    ir.save(model, path)
    mask = band_mask(rng, "a.weight", weight)
    compiled = compile_model(path, masks_of(mask), FREE)
    assert compiled.report.left_alone["a.weight"] == "products multiply by it both ways round"
    x = rng.standard_normal((1, 2, 16)).astype(np.float32)
    expected = run_ort(path, {"x": x}, optimise=False)
    found = run_ort(compiled.save(tmp_path / "out"), {"x": x}, optimise=False)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)
