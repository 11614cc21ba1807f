"""What a compile refuses rather than lose, and what functions and old graphs come to."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from patch_compile.compiler import compile_model, plan_model
from patch_compile.errors import ModelError, RecipeError
from patch_compile.io.onnx_model import load_model
from patch_compile.recipe import BuildRecipe, CompileRecipe, ExportRecipe, LearnRecipe
from tests.support import (
    Linear,
    linear_model,
    masked_product,
    masks_of,
    random_mask,
    random_weight,
    run_ort,
)


def test_compile_refuses_to_overwrite_its_own_input(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    weight = random_weight(rng, 48, 32)
    masks = masks_of(random_mask(rng, "fc.weight", weight, "band:8"))
    path = linear_model([Linear("fc", weight)], tmp_path / "compiled.onnx", external=True)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(ModelError, match="holds the input itself"):
        compile_model(path, masks).save(tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_recompile_keeps_the_plan_and_report_of_the_first(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    weight = random_weight(rng, 48, 32)
    masks = masks_of(random_mask(rng, "fc.weight", weight, "band:8"))
    path = linear_model([Linear("fc", weight)], tmp_path / "model.onnx")
    one = compile_model(path, masks, CompileRecipe(lowering="columns")).save(tmp_path / "one")
    two = compile_model(one, masks).save(tmp_path / "two")
    for name in ("plan.json", "report.json", "report.html", "compiled.onnx"):
        assert one.with_name(name).read_bytes() == two.with_name(name).read_bytes()


def test_dry_run_cannot_be_saved_for_a_compiled_model(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    weight = random_weight(rng, 48, 32)
    path = linear_model([Linear("fc", weight)], tmp_path / "model.onnx")
    planned = plan_model(path, masks_of(random_mask(rng, "fc.weight", weight, "band:8")))
    assert not hasattr(planned, "save")


def test_restored_weights_do_not_count_as_zeros(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    weight = random_weight(rng, 64, 64)
    dense = np.zeros((8, 8), np.bool_)
    dense[:, 3] = True
    dense[2, 5] = True
    mask = random_mask(rng, "fc.weight", weight, "8x8", dense=dense)
    path = linear_model([Linear("fc", weight)], tmp_path / "model.onnx")
    recipe = CompileRecipe(lowering="reduction", restore=True)
    compiled = compile_model(path, masks_of(mask), recipe)
    model = load_model(compiled.save(tmp_path / "out"))
    weights = [np.asarray(v.const_value.numpy()) for v in model.graph.initializers.values()]  # type: ignore[union-attr]
    zeros = sum(int((w == 0).sum()) for w in weights if w.dtype == np.float32)
    assert compiled.report.weights[0].sparsity == pytest.approx(zeros / weight.size)


def test_old_opset_is_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    weight = random_weight(rng, 48, 32)
    path = linear_model([Linear("fc", weight)], tmp_path / "model.onnx", opset=9)
    with pytest.raises(ModelError, match="has opset 9; expected 11 or more"):
        compile_model(path, masks_of(random_mask(rng, "fc.weight", weight, "band:8")))


def test_sparse_initializer_is_refused(tmp_path: Path) -> None:
    values = numpy_helper.from_array(np.ones(2, np.float32), "w")
    places = numpy_helper.from_array(np.array([0, 3], np.int64), "w_indices")
    sparse = helper.make_sparse_tensor(values, places, [2, 2])
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 2])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 2])
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y])
    graph.sparse_initializer.append(sparse)
    onnx.save(helper.make_model(graph), tmp_path / "model.onnx")
    with pytest.raises(ModelError, match="sparse initializers"):
        load_model(tmp_path / "model.onnx")


def test_constant_of_a_function_called_twice_is_masked_in_both(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    weight = random_weight(rng, 32, 32)
    mask = random_mask(rng, "W", weight, "band:8", with_digests=False)
    tensor = numpy_helper.from_array(np.ascontiguousarray(weight.T), "W")
    body = [
        helper.make_node("Constant", [], ["W"], value=tensor),
        helper.make_node("MatMul", ["a", "W"], ["b"]),
    ]
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("local", 1)]
    function = helper.make_function("local", "F", ["a"], ["b"], body, opsets[:1])
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2, 32])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2, 32])
    calls = [
        helper.make_node("F", ["x"], ["h"], domain="local"),
        helper.make_node("F", ["h"], ["y"], domain="local"),
    ]
    graph = helper.make_graph(calls, "g", [x], [y])
    model = helper.make_model(graph, functions=[function], opset_imports=opsets, ir_version=10)
    onnx.save(model, tmp_path / "model.onnx")
    out = compile_model(tmp_path / "model.onnx", masks_of(mask)).save(tmp_path / "out")
    inputs = rng.standard_normal((2, 32)).astype(np.float32)
    once = masked_product(inputs, weight, mask.keep())
    expected = masked_product(once, weight, mask.keep())
    found = run_ort(out, {"x": inputs}, optimise=False)["y"]
    # Two products of 32 terms of size up to 50.
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: CompileRecipe(lowering="column"),  # type: ignore[arg-type]
        lambda: CompileRecipe(include="a*"),  # type: ignore[arg-type]
        lambda: LearnRecipe(method="zzz"),  # type: ignore[arg-type]
        lambda: ExportRecipe(dtype="x"),  # type: ignore[arg-type]
        lambda: BuildRecipe(timeout=-1),
    ],
)
def test_recipe_holds_only_what_it_can_mean(make: object) -> None:
    assert callable(make)
    with pytest.raises(RecipeError, match="expected"):
        make()
