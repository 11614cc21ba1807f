"""Grouped lowerings on the graphs of real exporters: right, smaller, verified."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from patch_compile.compiler import compile_model
from patch_compile.io.onnx_model import load_model
from patch_compile.passes.legal import sparse_pieces_are_24
from patch_compile.recipe import CompileRecipe
from patch_compile.tiles.masks import Masks
from patch_compile.verification import verify
from tests.support import masks_of, random_mask, run_ort

if TYPE_CHECKING:
    from tests.passes.exports import Exported

# float32 through two layers; sums of a few hundred products, in another order.
TOLERANCE = 1e-4
BLOCK = 16

Weights = dict[str, NDArray[np.float32]]

# By the end of a weight's path: cut along N, or along K, by the same blocks.
ROWS = ("gate_proj", "up_proj", "mlp.c_fc", "fc1")
COLUMNS = ("down_proj", "mlp.c_proj", "fc2")


def tied_masks(weights: Weights) -> Masks:
    """As `--tie mlp` makes them, and q, k and v in bands; the rest has no mask."""
    rng = np.random.default_rng(7)
    made = []
    for name, weight in weights.items():
        path = name.removesuffix(".weight")
        if path.endswith((*ROWS, *COLUMNS)):
            rows = path.endswith(ROWS)
            dense = np.arange(weight.shape[0 if rows else 1] // BLOCK) % 3 == 1
            tile = f"band:{BLOCK}" if rows else f"column:{BLOCK}"
            tiles = dense[:, None] if rows else dense[None]
            made.append(random_mask(rng, name, weight, tile, dense=tiles))
        elif path.endswith(("q_proj", "k_proj", "v_proj")):
            dense = np.arange(weight.shape[0] // 8) % 3 == 1
            made.append(random_mask(rng, name, weight, "band:8", dense=dense[:, None]))
    return masks_of(*made)


def kinds(path: Path) -> Counter[str]:
    return Counter(
        node.op_type for node in onnx.load(path, load_external_data=False).graph.node
    )


def check(exported: "Exported", folder: Path, lowering: Any) -> tuple[Any, Counter[str]]:
    masks = tied_masks(exported.linears())
    recipe = CompileRecipe(lowering=lowering, min_gain=0.0)
    compiled = compile_model(exported.path, masks, recipe)
    out = compiled.save(folder / lowering)
    ids = np.random.default_rng(1).integers(0, 128, (2, 6))
    expected = exported.masked({n: m.keep() for n, m in masks.weights.items()}, ids)
    for optimise in (False, True):
        (found,) = run_ort(out, {"input_ids": ids}, optimise=optimise).values()
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
    assert sparse_pieces_are_24(load_model(out)) == []
    assert verify(exported.path, out, masks).passed
    again = compile_model(out, masks, recipe)
    assert again.save(folder / f"{lowering}-again").read_bytes() == out.read_bytes()
    return compiled, kinds(out)


@pytest.mark.parametrize("name", ["dynamo", "gpt2", "opt"])
def test_every_mlp_becomes_branches_without_a_gather_or_concat(
    request: pytest.FixtureRequest, tmp_path: Path, name: str
) -> None:
    exported = request.getfixturevalue(name)
    compiled, after = check(exported, tmp_path, "branches")
    before = kinds(exported.path)
    assert [group.lowering for group in compiled.plan.groups] == ["branches"] * 2
    for kind in ("Gather", "Concat", "Slice", "Reshape"):
        assert after[kind] <= before[kind]
    # One more a layer for the Add; Gemm's bias becomes an Add as well.
    assert after["Add"] <= before["Add"] + 2 + 4 * before["Gemm"]


@pytest.mark.parametrize("name", ["dynamo", "gpt2", "opt"])
def test_order_sinks_in_every_mlp(
    request: pytest.FixtureRequest, tmp_path: Path, name: str
) -> None:
    exported = request.getfixturevalue(name)
    compiled, after = check(exported, tmp_path, "sink-order")
    assert [group.lowering for group in compiled.plan.groups] == ["sink-order"] * 2
    assert after["Gather"] == kinds(exported.path)["Gather"]


def test_auto_has_fewer_nodes_products_and_moves_than_columns(
    dynamo: "Exported", tmp_path: Path
) -> None:
    _, columns = check(dynamo, tmp_path, "columns")
    compiled, auto = check(dynamo, tmp_path, "auto")
    assert compiled.report.totals["groups"] == {"branches": 2, "merge": 2}
    assert sum(auto.values()) < sum(columns.values())
    assert auto["MatMul"] < columns["MatMul"]
    assert auto["Gather"] < columns["Gather"]
    # A dense layer has 7 products over weights; a cut one has 2 + 1 and 2 + 2.
    before = kinds(dynamo.path)["MatMul"]
    assert auto["MatMul"] == before


def test_torchscript_products_become_branches(torchscript: "Exported", tmp_path: Path) -> None:
    """up and down of its MLP, and q and o of what stands for an attention, are blocks."""
    rng = np.random.default_rng(7)
    made = []
    for name, weight in torchscript.linears().items():
        rows = name.endswith(("q_proj.weight", "up_proj.weight"))
        dense = np.arange(weight.shape[0 if rows else 1] // 8) % 3 == 1
        tiles = dense[:, None] if rows else dense[None]
        tile = "band:8" if rows else "column:8"
        made.append(random_mask(rng, name, weight, tile, dense=tiles))
    masks = masks_of(*made)
    compiled = compile_model(torchscript.path, masks, CompileRecipe(min_gain=0.0))
    assert [group.lowering for group in compiled.plan.groups] == ["branches"] * 4
    out = compiled.save(tmp_path)
    x = rng.standard_normal((2, 5, 32)).astype(np.float32)
    (found,) = run_ort(out, {"x": x}, optimise=True).values()
    expected = torchscript.masked({n: m.keep() for n, m in masks.weights.items()}, x)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
    assert not kinds(out).keys() & {"Gather", "Concat"}
    assert verify(torchscript.path, out, masks).passed
