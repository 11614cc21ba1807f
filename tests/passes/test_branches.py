"""A block of products is cut along its inner axis and computes the masked block."""

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from patch_compile.compiler import Compiled, compile_model
from patch_compile.errors import InternalError
from patch_compile.io.onnx_model import load_model
from patch_compile.passes import branches, inner_axis, sink_order
from patch_compile.passes.legal import sparse_pieces_are_24
from patch_compile.recipe import CompileRecipe
from patch_compile.tiles.masks import Masks
from patch_compile.tiles.plan import Plan
from tests.passes.mlp import ACTIVATIONS, Arrays, Mlp, tied_masks
from tests.support import graph_text, masks_of, random_mask, run_ort

# float32 sums of at most 40 products of numbers below 8, twice in a row, in another order;
# outputs reach some hundreds.
RTOL, ATOL = 2e-5, 2e-3

DENSE = np.array([False, True, False, True, False])
GROUPED = ("branches", "sink-order")


def check_mlp(
    mlp: Mlp, arrays: Arrays, masks: Masks, lowering: str, *, restore: bool = False
) -> tuple[Compiled, onnx.ModelProto]:
    """Compiles and compares with numpy at both levels; returns what was made."""
    rng = np.random.default_rng(9)
    keeps = {name: mask.keep() for name, mask in masks.weights.items()}
    flat = mlp.products == "Gemm" and not mlp.reshaped
    x = rng.standard_normal((3, mlp.hidden) if flat else (2, 3, mlp.hidden))
    x = x.astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = mlp.save(Path(folder) / "model.onnx", arrays)
        recipe = CompileRecipe(lowering=lowering, min_gain=0.0, restore=restore)  # type: ignore[arg-type]
        compiled = compile_model(path, masks, recipe)
        out = compiled.save(Path(folder) / "out")
        assert Plan.from_json((out.parent / "plan.json").read_text()) == compiled.plan
        for plan in compiled.plan.weights if restore else ():
            for piece in plan.pieces:
                if piece.role == "dense":
                    rows, columns = (
                        [i for s in t for i in range(*s)] for t in (piece.rows, piece.columns)
                    )
                    keeps[plan.masks[0]][np.ix_(rows, columns)] = True
        expected = mlp.reference(x, arrays, keeps)
        for optimise in (False, True):
            found = run_ort(out, {"x": x}, optimise=optimise)["y"]
            np.testing.assert_allclose(found, expected, rtol=RTOL, atol=ATOL)
        model = load_model(out)
        assert sparse_pieces_are_24(model) == []
        again = compile_model(out, masks, recipe)
        assert {weight.lowering for weight in again.report.weights} <= {"untouched"}
        two = again.save(Path(folder) / "two")
        assert two.read_bytes() == out.read_bytes()
        return compiled, onnx.load(out)


def kinds(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


@given(
    seed=st.integers(0, 2**32 - 1),
    hidden=st.integers(1, 6).map(lambda groups: 4 * groups),
    inner=st.integers(2, 10).map(lambda groups: 4 * groups),
    block=st.sampled_from([4, 8, 12]),
    activation=st.sampled_from([a for a in ACTIVATIONS if a != "swish"]),
    gated=st.booleans(),
    bias=st.booleans(),
    form=st.sampled_from([("MatMul", False), ("Gemm", False), ("Gemm", True)]),
    lowering=st.sampled_from([*GROUPED, "auto", "merge"]),
)
def test_any_tied_block_computes_the_masked_block(
    seed: int,
    hidden: int,
    inner: int,
    block: int,
    activation: str,
    gated: bool,
    bias: bool,
    form: tuple[str, bool],
    lowering: str,
) -> None:
    rng = np.random.default_rng(seed)
    mlp = Mlp(hidden, inner, activation, gated, bias, *form)
    arrays = mlp.arrays(rng)
    dense = rng.random(-(-inner // block)) < 0.5
    compiled, _ = check_mlp(mlp, arrays, tied_masks(rng, mlp, arrays, block, dense), lowering)
    if lowering in GROUPED and dense.any() and not dense.all():
        assert {weight.lowering for weight in compiled.plan.weights} == {lowering}


@given(
    seed=st.integers(0, 2**32 - 1),
    tiles=st.lists(
        st.sampled_from(["band:3", "band:8", "column:4", "8x8", "weight"]),
        min_size=3,
        max_size=3,
    ),
    lowering=st.sampled_from([*GROUPED, "auto", "merge"]),
    restore=st.booleans(),
)
def test_any_masks_compute_the_masked_block(
    seed: int, tiles: list[str], lowering: str, restore: bool
) -> None:
    """Masks that agree on nothing: whatever is planned must still be right."""
    rng = np.random.default_rng(seed)
    mlp = Mlp(16, 24, "relu", bias=True)
    arrays = mlp.arrays(rng)
    masks = masks_of(
        *(
            random_mask(rng, f"{name}.weight", arrays[f"{name}.weight"], tile, 0.3)
            for name, tile in zip(("gate", "up", "down"), tiles, strict=True)
        )
    )
    check_mlp(mlp, arrays, masks, lowering, restore=restore)


def case(**changes: Any) -> tuple[Mlp, Arrays, Masks]:
    rng = np.random.default_rng(5)
    mlp = Mlp(16, 40, **changes)
    arrays = mlp.arrays(rng)
    return mlp, arrays, tied_masks(rng, mlp, arrays, 8, DENSE)


def test_branches_have_no_concat_no_gather_and_one_add() -> None:
    compiled, model = check_mlp(*case(), "branches")
    (group,) = compiled.plan.groups
    assert (group.rows, group.columns, group.merged) == (
        ("gate.weight", "up.weight"),
        "down.weight",
        True,
    )
    assert kinds(model) == {
        "MatMul": 4,
        "Split": 2,
        "Sigmoid": 2,
        "Mul": 4,
        "Add": 1,
        "Identity": 1,
    }


def test_sunk_order_has_one_concat_and_no_gather() -> None:
    _, model = check_mlp(*case(), "sink-order")
    assert kinds(model)["Concat"] == 1
    assert kinds(model)["MatMul"] == 3
    assert not kinds(model).keys() & {"Gather", "Reshape", "Slice"}


def test_gpt2_form_loses_its_reshapes_inside_the_block() -> None:
    mlp, arrays, masks = case(
        activation="gelu_tanh", gated=False, bias=True, products="Gemm", reshaped=True
    )
    _, model = check_mlp(mlp, arrays, masks, "branches")
    # One before the first product, one after the last.
    assert kinds(model)["Reshape"] == 2
    assert kinds(model)["MatMul"] == 4


@pytest.mark.parametrize("lowering", GROUPED)
def test_auto_has_fewer_nodes_and_products_than_columns(lowering: str) -> None:
    mlp, arrays, masks = case()
    _, before = check_mlp(mlp, arrays, masks, "columns")
    _, after = check_mlp(mlp, arrays, masks, lowering)
    assert len(after.graph.node) < len(before.graph.node)
    assert kinds(after)["MatMul"] < kinds(before)["MatMul"] + 1


def test_auto_takes_branches_for_tied_masks() -> None:
    compiled, model = check_mlp(*case(), "auto")
    assert compiled.report.totals["lowerings"] == {"branches": 3}
    assert compiled.report.totals["groups"] == {"branches": 1}
    assert compiled.report.totals["products"] == 4 == kinds(model)["MatMul"]
    assert compiled.report.weights[0].reason == "saves 30.0% of the multiply-adds of 3 weights"


def test_auto_sinks_the_order_into_a_whole_weight() -> None:
    mlp, arrays, masks = case()
    rng = np.random.default_rng(1)
    down = random_mask(rng, "down.weight", arrays["down.weight"], "weight", 0.0)
    masks = Masks({**masks.weights, "down.weight": down})
    compiled, model = check_mlp(mlp, arrays, masks, "auto")
    assert compiled.report.totals["lowerings"] == {"sink-order": 3}
    assert kinds(model)["MatMul"] == 3


def test_swish_of_a_later_opset_is_copied() -> None:
    """ONNX Runtime has no Swish yet: the graph is looked at, not run."""
    mlp, arrays, masks = case(activation="swish", opset=24)
    with tempfile.TemporaryDirectory() as folder:
        path = mlp.save(Path(folder) / "m.onnx", arrays)
        out = compile_model(path, masks).save(Path(folder) / "out")
        assert kinds(onnx.load(out))["Swish"] == 2
        onnx.checker.check_model(onnx.load(out))


# Refusals


EXTRA = {
    "'silu_reader'": {
        "extra": [helper.make_node("Neg", ["gated"], ["z"], name="silu_reader")]
    },
    "'gate' is also read by Neg 'other'": {
        "extra": [helper.make_node("Neg", ["gate"], ["z"], name="other")]
    },
    "'up' is an output of the graph": {"outputs": ["up"]},
    "'gated' is an output of the graph": {"outputs": ["gated"]},
}


@pytest.mark.parametrize("why", EXTRA)
@pytest.mark.parametrize("lowering", GROUPED)
def test_what_others_read_is_left_alone_with_a_reason(why: str, lowering: str) -> None:
    changes: dict[str, Any] = dict(EXTRA[why])
    if "extra" in changes:
        changes["outputs"] = ["z"]
    compiled, _ = check_mlp(*case(**changes), lowering)
    assert compiled.plan.groups == ()
    for weight in compiled.report.weights:
        assert weight.lowering == "dense"
        assert f"'{lowering}' was forced but" in weight.reason
        assert why in weight.reason


def test_weight_without_a_mask_stays_out() -> None:
    mlp, arrays, masks = case()
    some = Masks({n: m for n, m in masks.weights.items() if n != "up.weight"})
    compiled, _ = check_mlp(mlp, arrays, some, "branches")
    assert [w.lowering for w in compiled.report.weights] == ["dense", "dense"]
    assert "'up.weight' has no mask" in compiled.report.weights[0].reason


def test_masks_without_a_common_block_say_so() -> None:
    mlp, arrays, masks = case()
    rng = np.random.default_rng(1)
    other = random_mask(rng, "up.weight", arrays["up.weight"], "band:8", dense=~DENSE[:, None])
    compiled, _ = check_mlp(
        mlp, arrays, Masks({**masks.weights, "up.weight": other}), "branches"
    )
    assert (
        "no block of their inner axis is 2:4 in every weight"
        in compiled.report.weights[0].reason
    )


def test_operation_that_mixes_features_is_no_block() -> None:
    node = helper.make_node("Softmax", ["gate"], ["soft"], axis=-1)
    compiled, _ = check_mlp(
        *case(gated=False, activation="relu", extra=[node], outputs=["soft"]), "auto"
    )
    assert compiled.plan.groups == ()


def test_weight_of_two_products_is_refused(tmp_path: Path) -> None:
    mlp, arrays, masks = case(gated=False, activation="relu")
    path = mlp.save(tmp_path / "model.onnx", arrays)
    model = onnx.load(path)
    model.graph.node.append(helper.make_node("MatMul", ["x", "gate.weight"], ["twice"]))
    model.graph.output.append(helper.make_tensor_value_info("twice", 1, None))
    onnx.save(model, path)
    compiled = compile_model(path, masks, CompileRecipe(lowering="branches"))
    assert "2 products multiply by 'gate.weight'" in compiled.report.weights[0].reason


# Golden graphs and mutants


@pytest.mark.parametrize("lowering", GROUPED)
def test_printed_graph_is_the_golden_one(tmp_path: Path, golden: Any, lowering: str) -> None:
    mlp, arrays, masks = case(bias=True)
    path = mlp.save(tmp_path / "model.onnx", arrays)
    recipe = CompileRecipe(lowering=lowering)  # type: ignore[arg-type]
    out = compile_model(path, masks, recipe).save(tmp_path / "out")
    golden.check(f"{lowering}.txt", graph_text(out))


def _one_branch(self: Any, op: Any, y: ir.Value, **_: Any) -> Any:
    dense, sparse = self.halves(op, y)
    emit = self.emit(op, y)
    emit.product(sparse, 1)
    return emit.product(dense, 0)


def _swapped(self: Any, op: Any, y: ir.Value, **_: Any) -> Any:
    emit = self.emit(op, y)
    halves = self.halves(op, y)
    inner = emit.concat([halves[0], halves[1]])
    return emit.join(
        [(emit.product(inner, i), p.rows) for i, p in enumerate(emit.job.plan.pieces)]
    )


def _first_biases(self: Any, value: ir.Value, tensor: Any) -> ir.Value:
    shape = tensor.shape.numpy()
    if not shape or shape[-1] != self.features:
        return value
    size = inner_axis.length(self.spans)
    return self._initializer(value, tensor.numpy()[..., :size], tensor)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("lowering", "target", "attribute", "mutant"),
    [
        ("branches", branches.SplitBranches, "rewrite", _one_branch),
        ("sink-order", sink_order.SinkOrder, "rewrite", _swapped),
        ("branches", inner_axis._Copy, "_constant", _first_biases),
    ],
)
def test_planted_mutant_is_caught(
    monkeypatch: pytest.MonkeyPatch, lowering: str, target: type, attribute: str, mutant: Any
) -> None:
    check_mlp(*case(bias=True), lowering)
    monkeypatch.setattr(target, attribute, mutant)
    with pytest.raises((AssertionError, InternalError)):
        check_mlp(*case(bias=True), lowering)
