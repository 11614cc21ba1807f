"""Weights, names and files that real life brings: each gives a right model or one line."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file, save_file

from patch_compile.compiler import compile_model
from patch_compile.errors import MaskError, ModelError, PatchCompileError
from patch_compile.inspection import inspect_model
from patch_compile.io.load_masks import load_masks
from patch_compile.io.masks_file import save_masks
from patch_compile.io.onnx_model import load_model
from patch_compile.passes.legal import sparse_pieces_are_24
from patch_compile.recipe import CompileRecipe
from patch_compile.tiles.masks import Masks
from patch_compile.tiles.weight_mask import WeightMask
from tests.support import (
    Linear,
    band_mask,
    contents,
    linear_model,
    masked_product,
    masks_of,
    random_weight,
    run_ort,
    said,
    three_linears,
)

ROOT = Path(__file__).parents[2]
FORMS = ["matmul", "gemm_b"]


def checked(path: Path, masks: Masks, weight: NDArray[Any], out: Path) -> None:
    """Compiles a model of one linear `fc` and compares it with the masked product."""
    compiled = compile_model(path, masks).save(out)
    k = weight.shape[1]
    x = np.random.default_rng(5).standard_normal((2, 3, k)).astype(np.float32)
    found = run_ort(compiled, {"x": x}, optimise=False)["y_fc"]
    expected = masked_product(x, weight, masks.weights["fc.weight"].keep())
    # Sums of up to 64 products of size up to 5, in float32.
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-3)
    assert sparse_pieces_are_24(load_model(compiled)) == []


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("k", [4, 6, 13, 30, 50])
def test_k_that_is_no_multiple_of_4(
    tmp_path: Path, rng: np.random.Generator, form: str, k: int
) -> None:
    weight = random_weight(rng, 32, k)
    path = linear_model(
        [Linear("fc", weight, form)],
        tmp_path / "model.onnx",
        lead=(2, 3) if form == "matmul" else ("m",),
    )
    masks = masks_of(band_mask(rng, "fc.weight", weight))
    if form == "matmul":
        checked(path, masks, weight, tmp_path / "out")
    else:
        compiled = compile_model(path, masks).save(tmp_path / "out")
        x = rng.standard_normal((5, k)).astype(np.float32)
        found = run_ort(compiled, {"x": x}, optimise=False)["y_fc"]
        expected = masked_product(x, weight, masks.weights["fc.weight"].keep())
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("value", [0.0, -0.0])
def test_weight_of_zeros(tmp_path: Path, rng: np.random.Generator, value: float) -> None:
    weight = np.full((32, 48), value, np.float32)
    path = linear_model([Linear("fc", weight)], tmp_path / "model.onnx")
    masks = masks_of(band_mask(rng, "fc.weight", weight))
    checked(path, masks, weight, tmp_path / "out")
    found = inspect_model(tmp_path / "out" / "compiled.onnx", "8x8")
    assert {part.zeros for part in found.weights} == {1.0}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kept", [True, False])
def test_weight_that_is_no_number(
    tmp_path: Path, rng: np.random.Generator, value: float, kept: bool
) -> None:
    """Where it is pruned it is a zero, not 0 x NaN; where it stays it stays, bit for bit."""
    weight = random_weight(rng, 32, 48)
    mask = band_mask(rng, "fc.weight", weight)
    rows, columns = np.where(mask.keep() == kept)
    weight[rows[::7], columns[::7]] = value
    path = linear_model([Linear("fc", weight)], tmp_path / "model.onnx")
    masks = masks_of(without_digests(mask))
    compiled = compile_model(path, masks).save(tmp_path / "out")
    x = rng.standard_normal((2, 3, 48)).astype(np.float32)
    found = run_ort(compiled, {"x": x}, optimise=False)["y_fc"]
    with np.errstate(invalid="ignore"):
        expected = masked_product(x, weight, mask.keep())
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-3)
    assert np.isfinite(found).all() == (not kept)


def without_digests(mask: WeightMask) -> WeightMask:
    """The mask without the digests of the weight as it was."""
    return replace(mask, digests={})


@pytest.mark.parametrize("shape", [(0, 8), (8, 0), (0, 0)])
def test_zero_size_axis_is_left_alone_with_a_reason(
    tmp_path: Path, rng: np.random.Generator, shape: tuple[int, int]
) -> None:
    weights = [Linear("fc", np.zeros(shape, np.float32))]
    path = linear_model(weights, tmp_path / "model.onnx")
    compiled = compile_model(path, "infer")
    assert "shape" in compiled.report.left_alone["fc.weight"]
    compiled.save(tmp_path / "out")
    assert inspect_model(path).weights == ()


def test_model_without_nodes_is_compiled_to_itself(tmp_path: Path) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph([], "empty", [x], [x])
    opsets = [helper.make_opsetid("", 20)]
    onnx.save(
        helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "m.onnx"
    )
    compiled = compile_model(tmp_path / "m.onnx", "infer")
    assert compiled.report.weights == ()
    assert compiled.save(tmp_path / "out").is_file()


@pytest.mark.parametrize("kind", [np.float32, np.int64, np.bool_, np.int8])
@pytest.mark.parametrize("part", ["keep", "dense"])
def test_masks_of_another_type_are_refused(
    tmp_path: Path, rng: np.random.Generator, kind: Any, part: str
) -> None:
    path, masks, _ = three_linears(tmp_path, rng)
    save_masks(masks, tmp_path / "masks.json")
    data = tmp_path / "masks.safetensors"
    arrays = load_file(data)
    arrays[f"a.weight.{part}"] = arrays[f"a.weight.{part}"].astype(kind)
    save_file(arrays, data)
    index = json.loads((tmp_path / "masks.json").read_text("utf-8"))
    index["data_sha256"] = sha256_of(data)
    (tmp_path / "masks.json").write_text(json.dumps(index), "utf-8")
    with pytest.raises(MaskError, match="expected uint8"):
        compile_model(path, tmp_path / "masks.json")


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_names_that_ours_would_have_are_kept_apart(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    """All that a first compile adds is already there, as nodes, values and weights."""
    path, masks, weights = three_linears(tmp_path, rng)
    recipe = CompileRecipe(lowering="columns")
    first = onnx.load(compile_model(path, masks, recipe).save(tmp_path / "first"))
    model = onnx.load(path)
    old = {n for node in model.graph.node for n in (node.name, *node.input, *node.output)}
    made = {n for node in first.graph.node for n in (node.name, *node.input, *node.output)}
    taken = sorted(made - old - {""})
    assert len(taken) > 10
    for name in taken:
        model.graph.initializer.append(numpy_helper.from_array(np.ones(1, np.float32), name))
        model.graph.node.add(
            op_type="Identity", name=name, input=[name], output=[f"{name}/patch"]
        )
        model.graph.output.append(
            helper.make_tensor_value_info(f"{name}/patch", TensorProto.FLOAT, [1])
        )
    onnx.save(model, tmp_path / "taken.onnx")
    out = compile_model(tmp_path / "taken.onnx", masks, recipe).save(tmp_path / "out")
    onnx.checker.check_model(onnx.load(out), full_check=True)
    x = rng.standard_normal((1, 4, 48)).astype(np.float32)
    found = run_ort(out, {"x": x}, optimise=False)
    for name, weight in weights.items():
        expected = masked_product(x, weight, masks.weights[f"{name}.weight"].keep())
        np.testing.assert_allclose(found[f"y_{name}"], expected, rtol=1e-5, atol=1e-3)
    assert all((found[f"{name}/patch"] == 1).all() for name in taken)


@pytest.mark.parametrize("change", ["replaced", "truncated", "touched"])
@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "masks.safetensors"])
def test_input_that_changes_while_it_is_compiled_is_refused(
    tmp_path: Path, rng: np.random.Generator, change: str, name: str
) -> None:
    path, masks, _ = three_linears(tmp_path, rng, external=True)
    save_masks(masks, tmp_path / "masks.json")
    out = tmp_path / "out"
    compile_model(path, tmp_path / "masks.json", CompileRecipe(lowering="columns")).save(out)
    before = contents(out)
    compiled = compile_model(path, load_masks(tmp_path / "masks.json"))
    changed = tmp_path / name
    if change == "replaced":
        shutil.copy(changed, tmp_path / "new")
        os.replace(tmp_path / "new", changed)
    elif change == "truncated":
        os.truncate(changed, changed.stat().st_size // 2)
    else:
        os.utime(changed, (1, 1))
    with pytest.raises(PatchCompileError) as caught:
        compiled.save(out)
    assert "changed while" in said(caught) or "cut short" in said(caught)
    assert contents(out) == before


STRANGE = os.fsdecode(b"m\xff\xfe \xe9.onnx")


@pytest.mark.parametrize("verb", ["compile", "inspect", "plan"])
def test_names_of_files_that_are_not_utf8(
    tmp_path: Path, rng: np.random.Generator, verb: str
) -> None:
    path, masks, _ = three_linears(tmp_path, rng, external=True)
    save_masks(masks, tmp_path / "masks.json")
    folder = tmp_path / os.fsdecode(b"f\xff")
    folder.mkdir()
    os.replace(path.with_name("model.onnx.data"), folder / "model.onnx.data")
    os.replace(path, folder / STRANGE)
    words = {"compile": [], "inspect": ["inspect"], "plan": ["plan"]}[verb]
    words = [*words, str(folder / STRANGE)]
    if verb != "inspect":
        written = folder / ("out" if verb == "compile" else "out.json")
        words += ["--tiles", str(tmp_path / "masks.json"), "-o", str(written)]
    done = patch_compile(*words)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        [os.fsdecode(b"\xff")],
        ["inspect", STRANGE],
        ["@model.onnx", "--tiles", os.fsdecode(b"\xff.json")],
        ["@model.onnx", "--tiles", "infer", "--ignore", os.fsdecode(b"*\xff*,re:[")],
        ["@model.onnx", "--tiles", "infer", "--tile", os.fsdecode(b"\xff")],
        ["--config", os.fsdecode(b"\xff.toml"), "inspect", "@model.onnx"],
        [os.fsdecode(b"--\xff"), "@model.onnx"],
    ],
    ids=range(7),
)
def test_arguments_that_are_not_utf8_are_one_line(
    tmp_path: Path, rng: np.random.Generator, words: list[str]
) -> None:
    three_linears(tmp_path, rng)
    given = [str(tmp_path / w[1:]) if w.startswith("@") else w for w in words]
    done = patch_compile(*given)
    assert done.returncode == 1
    assert done.stderr.startswith(b"patch-compile: ")
    assert done.stderr.count(b"\n") == 1


def test_terminal_that_knows_no_unicode_gets_its_table(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    path, _, _ = three_linears(tmp_path, rng)
    done = patch_compile("inspect", str(path), "--maps", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr


def patch_compile(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        [sys.executable, "-m", "patch_compile", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        timeout=300,
        check=False,
        cwd=ROOT,
    )


@pytest.mark.parametrize(
    ("functions", "part"),
    [((3, 1, "f0"), "calls itself"), ((6, 10, ""), "grow to 1000000 nodes")],
)
def test_functions_without_end_are_refused(
    tmp_path: Path, functions: tuple[int, int, str], part: str
) -> None:
    depth, times, last = functions
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("local", 1)]
    made = []
    for index in range(depth):
        callee = f"f{index + 1}" if index < depth - 1 else last or "Relu"
        domain = "local" if callee.startswith("f") else ""
        names = ["a", *(f"b{i}" for i in range(times))]
        nodes = [
            helper.make_node(callee, [names[i]], [names[i + 1]], domain=domain)
            for i in range(times)
        ]
        made.append(
            helper.make_function("local", f"f{index}", ["a"], [names[-1]], nodes, opsets)
        )
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in "xy")
    node = helper.make_node("f0", ["x"], ["y"], domain="local")
    graph = helper.make_graph([node], "g", [x], [y])
    model = helper.make_model(graph, functions=made, opset_imports=opsets, ir_version=10)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ModelError) as caught:
        inspect_model(tmp_path / "model.onnx")
    assert part in said(caught)


@pytest.mark.parametrize("field", ["input", "output"])
@pytest.mark.parametrize("name", ["", "x", "y_a"])
def test_graph_that_is_not_whole_is_the_model_s_fault(
    tmp_path: Path, rng: np.random.Generator, field: str, name: str
) -> None:
    path, masks, _ = three_linears(tmp_path, rng)
    model = onnx.load(path)
    value = helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])
    getattr(model.graph, field).append(value)
    onnx.save(model, path)
    if (field, name) == ("output", "x"):
        # An input may well be an output.
        assert compile_model(path, masks).save(tmp_path / "out").is_file()
        return
    with pytest.raises(ModelError) as caught:
        compile_model(path, masks)
    assert "is not whole" in said(caught) or "not a readable" in said(caught)


@pytest.mark.parametrize("lost", ["output", "node"])
def test_graph_with_a_hole_is_the_model_s_fault(
    tmp_path: Path, rng: np.random.Generator, lost: str
) -> None:
    path, masks, _ = three_linears(tmp_path, rng)
    model = onnx.load(path)
    if lost == "output":
        del model.graph.node[0].output[:]
    else:
        del model.graph.node[0]
    onnx.save(model, path)
    with pytest.raises(ModelError) as caught:
        compile_model(path, masks)
    assert "is not whole" in said(caught)


def test_scopes_are_read_and_never_run(tmp_path: Path, rng: np.random.Generator) -> None:
    """Python's own reader of such lists may crash on a deep one."""
    path, masks, _ = three_linears(tmp_path, rng)
    model = onnx.load(path)
    for node, text in zip(
        model.graph.node, ("(" * 10**5, "-" * 10**5 + "1", "['x', 'q']"), strict=True
    ):
        node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=text)
    onnx.save(model, path)
    assert len(compile_model(path, masks).report.weights) == 3
