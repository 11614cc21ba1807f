"""An attention is cut between its groups of heads and computes the masked attention."""

import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from patch_compile.compiler import Compiled, compile_model
from patch_compile.io.onnx_model import load_model
from patch_compile.passes.legal import sparse_pieces_are_24
from patch_compile.passes.sites import ROLE
from patch_compile.recipe import CompileRecipe
from patch_compile.tiles.masks import Masks
from patch_compile.tiles.plan import Plan
from tests.passes.heads import Heads, tied_heads
from tests.passes.mlp import Arrays
from tests.support import OLD_ONNXRUNTIME, graph_text, random_mask, run_ort

# float32 sums of at most some tens of products of numbers below 8, three in a row, in another
# order; scores go through an exponential, outputs reach some tens.
RTOL, ATOL = 1e-4, 2e-3

GROUPED = ("branches", "sink-order")
FORMS = ("expand", "grouped", "flat", *(() if OLD_ONNXRUNTIME else ("op", "told")))


def check_heads(
    heads: Heads, arrays: Arrays, masks: Masks, lowering: str, *, restore: bool = False
) -> tuple[Compiled, onnx.ModelProto]:
    """Compiles and compares with numpy at both levels; returns what was made."""
    given = heads.inputs(np.random.default_rng(9))
    keeps = {name: mask.keep() for name, mask in masks.weights.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = heads.save(Path(folder) / "model.onnx", arrays)
        recipe = CompileRecipe(lowering=lowering, min_gain=0.0, restore=restore)  # type: ignore[arg-type]
        compiled = compile_model(path, masks, recipe)
        out = compiled.save(Path(folder) / "out")
        assert Plan.from_json((out.parent / "plan.json").read_text()) == compiled.plan
        for plan in compiled.plan.weights if restore else ():
            for piece in (piece for piece in plan.pieces if piece.role == "dense"):
                rows, columns = (
                    [i for span in spans for i in range(*span)]
                    for spans in (piece.rows, piece.columns)
                )
                keeps[plan.masks[0]][np.ix_(rows, columns)] = True
        expected = heads.reference(given, arrays, keeps)
        for optimise in (False, True):
            found = run_ort(out, given, optimise=optimise)["y"]
            np.testing.assert_allclose(found, expected, rtol=RTOL, atol=ATOL)
        assert sparse_pieces_are_24(load_model(out)) == []
        # Every size that a branch states agrees with what onnx works out.
        onnx.shape_inference.infer_shapes(onnx.load(out), strict_mode=True, data_prop=True)
        again = compile_model(out, masks, recipe)
        assert {weight.lowering for weight in again.report.weights} <= {"untouched"}
        assert again.save(Path(folder) / "two").read_bytes() == out.read_bytes()
        return compiled, onnx.load(out)


def kinds(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def case(
    dense: tuple[bool, ...] = (False, True, False), **changes: Any
) -> tuple[Heads, Arrays, Masks]:
    rng = np.random.default_rng(5)
    heads = Heads(groups=len(dense), **changes)
    arrays = heads.arrays(rng)
    return heads, arrays, tied_heads(rng, heads, arrays, np.array(dense))


@st.composite
def attentions(draw: st.DrawFn) -> Heads:
    form = draw(st.sampled_from(FORMS))
    fused = draw(st.booleans()) and form != "grouped"
    share = 1 if fused or form == "flat" else draw(st.integers(1, 3))
    whole = form in ("flat", "told")
    return Heads(
        groups=draw(st.integers(2, 5)),
        share=share,
        # ONNX Runtime's GroupQueryAttention knows multiples of 8 alone, and turns 16.
        head=16 if form == "told" else draw(st.sampled_from([2, 4, 6, 8])),
        form=form,
        fused=fused,
        bias=draw(st.booleans()),
        norm=draw(st.booleans()) and not whole,
        rotary=draw(st.booleans()) and form not in ("flat", "grouped"),
        chain=draw(st.booleans()) and form == "expand",
        slopes=draw(st.booleans()) and form == "expand",
    )


@given(
    seed=st.integers(0, 2**32 - 1),
    heads=attentions(),
    lowering=st.sampled_from([*GROUPED, "auto", "merge"]),
    restore=st.booleans(),
)
def test_any_tied_attention_computes_the_masked_attention(
    seed: int, heads: Heads, lowering: str, restore: bool
) -> None:
    rng = np.random.default_rng(seed)
    arrays = heads.arrays(rng)
    dense = rng.random(heads.groups) < 0.5
    masks = tied_heads(rng, heads, arrays, dense)
    compiled, _ = check_heads(heads, arrays, masks, lowering, restore=restore)
    # Where o has no whole groups of 4 a head, neighbours may have to be cut together.
    whole = (heads.share * heads.head) % 4 == 0
    if lowering in GROUPED and dense.any() and not dense.all() and whole:
        assert {weight.lowering for weight in compiled.plan.weights} == {lowering}


@given(
    seed=st.integers(0, 2**32 - 1),
    tiles=st.lists(
        st.sampled_from(["band:3", "band:8", "column:4", "8x8", "weight"]),
        min_size=4,
        max_size=4,
    ),
    lowering=st.sampled_from([*GROUPED, "auto"]),
)
def test_any_masks_compute_the_masked_attention(
    seed: int, tiles: list[str], lowering: str
) -> None:
    """Masks that agree on nothing: whatever is planned must still be right."""
    rng = np.random.default_rng(seed)
    heads = Heads(bias=True, rotary=True)
    arrays = heads.arrays(rng)
    made = [
        random_mask(rng, f"{name}.weight", arrays[f"{name}.weight"], tile, 0.3)
        for name, tile in zip("qkvo", tiles, strict=True)
    ]
    masks = Masks({mask.name: mask for mask in made})
    check_heads(heads, arrays, masks, lowering)


def test_a_branch_has_products_of_its_own_heads_and_one_add_joins_both() -> None:
    compiled, model = check_heads(*case(bias=True), "branches")
    (group,) = compiled.plan.groups
    assert (group.rows, group.columns) == (("q.weight", "k.weight", "v.weight"), "o.weight")
    assert group.merged
    shapes = {t.name: tuple(t.dims) for t in model.graph.initializer}
    sizes = Counter(
        (prop.value, shapes[node.input[1]])
        for node in model.graph.node
        for prop in node.metadata_props
        if prop.key == ROLE
    )
    # One of three groups is dense: q, k and v side by side, (2 + 1 + 1) heads of 4 a group.
    assert sizes == {
        ("dense", (16, 16)): 1,
        ("sparse24", (16, 32)): 1,
        ("dense", (8, 16)): 1,
        ("sparse24", (16, 16)): 1,
    }
    assert [node.op_type for node in model.graph.node][-2:] == ["Add", "Add"]
    assert model.graph.node[-1].input[1] == "o.bias"


# GroupQueryAttention is told of lengths, which a graph has to ask for.
@pytest.mark.parametrize("form", [form for form in FORMS if form != "told"])
@pytest.mark.parametrize("chain", [False, True])
def test_branches_have_no_concat_and_no_gather_of_their_own(form: str, chain: bool) -> None:
    """Shapes are constants: not even sizes are put together any more."""
    share = 1 if form == "flat" else 2
    heads, arrays, masks = case(form=form, chain=chain and form == "expand", share=share)
    _, model = check_heads(heads, arrays, masks, "branches")
    assert not kinds(model).keys() & {"Concat", "Gather", "Shape", "Slice"}


def test_a_rotation_is_copied_and_nothing_else_is_joined() -> None:
    heads, arrays, masks = case(rotary=True, chain=True)
    _, model = check_heads(heads, arrays, masks, "branches")
    joined = [node for node in model.graph.node if node.op_type == "Concat"]
    # Queries and keys of two branches.
    assert len(joined) == 4
    assert all("_other/patch/" in node.name for node in joined)
    assert not kinds(model).keys() & {"Gather", "Shape"}


def test_fewer_nodes_than_the_same_masks_in_columns() -> None:
    heads, arrays, masks = case(chain=True)
    _, columns = check_heads(heads, arrays, masks, "columns")
    compiled, branched = check_heads(heads, arrays, masks, "auto")
    assert compiled.report.totals["lowerings"] == {"branches": 4}
    assert compiled.report.totals["groups"] == {"branches": 1}
    assert kinds(branched)["MatMul"] - 4 == compiled.report.totals["products"] == 4
    assert len(branched.graph.node) < len(columns.graph.node)


def test_fused_queries_keys_and_values_are_cut_in_each_third() -> None:
    heads, arrays, masks = case((True, False, False, True), fused=True, share=1, bias=True)
    compiled, _ = check_heads(heads, arrays, masks, "branches")
    made, last = compiled.plan.weights
    assert made.pieces[1].rows == ((4, 12), (20, 28), (36, 44))
    # Groups 3 and 0 of neighbouring thirds touch.
    assert made.pieces[0].rows == ((0, 4), (12, 20), (28, 36), (44, 48))
    assert last.pieces[0].columns == ((0, 4), (12, 16))


def test_sunk_order_joins_the_heads_once() -> None:
    heads, arrays, masks = case(chain=True)
    rng = np.random.default_rng(1)
    whole = random_mask(rng, "o.weight", arrays["o.weight"], "weight", 0.0)
    compiled, model = check_heads(
        heads, arrays, Masks({**masks.weights, "o.weight": whole}), "auto"
    )
    assert compiled.report.totals["lowerings"] == {"sink-order": 4}
    assert kinds(model)["Concat"] == 1
    assert "Gather" not in kinds(model)


# Refusals


def _node(op: str, *inputs: str, out: str = "z", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs, [out], name=f"the_{op}", **attributes)


REFUSALS: dict[str, dict[str, Any]] = {
    "'k_heads', which holds all heads, is an output of the graph": {"outputs": ["k_heads"]},
    "'weights' is also read by Neg 'the_Neg'": {
        "extra": [_node("Neg", "weights")],
        "outputs": ["z"],
    },
    "'q_heads' is also read by Shape 'the_Shape'": {
        "extra": [_node("Shape", "q_heads", out="sizes"), _node("Cast", "sizes", to=1)],
        "outputs": ["z"],
    },
}


@pytest.mark.parametrize("why", REFUSALS)
@pytest.mark.parametrize("lowering", GROUPED)
def test_what_others_read_is_left_alone_with_a_reason(why: str, lowering: str) -> None:
    compiled, _ = check_heads(*case(**REFUSALS[why]), lowering)
    assert compiled.plan.groups == ()
    for weight in compiled.report.weights:
        assert weight.reason == f"'{lowering}' was forced but {why}"


def test_one_head_of_keys_and_values_is_refused() -> None:
    heads, arrays, _ = case((True, False))
    alone = replace(heads, groups=1)
    arrays = alone.arrays(np.random.default_rng(0))
    masks = tied_heads(np.random.default_rng(0), alone, arrays, np.array([False]))
    compiled, _ = check_heads(alone, arrays, masks, "branches")
    assert "it has one head of keys and values" in compiled.report.weights[0].reason


def test_weights_without_masks_stay_out() -> None:
    heads, arrays, masks = case()
    some = Masks({n: m for n, m in masks.weights.items() if n != "k.weight"})
    compiled, _ = check_heads(heads, arrays, some, "branches")
    assert "'k.weight' has no mask" in compiled.report.weights[0].reason


def test_masks_without_a_common_group_say_so() -> None:
    heads, arrays, masks = case()
    rng = np.random.default_rng(1)
    other = tied_heads(rng, heads, arrays, np.array([True, False, True]))
    mixed = Masks({**masks.weights, "v.weight": other.weights["v.weight"]})
    compiled, _ = check_heads(heads, arrays, mixed, "branches")
    assert "no group of heads is 2:4 in every weight" in compiled.report.weights[0].reason


def test_branch_that_parts_a_group_of_four_takes_two_heads() -> None:
    """Heads of 2 and 6 features: only pairs of them are whole groups of 4 in o."""
    heads, arrays, masks = case((True, True, False, False), share=1, head=6)
    compiled, _ = check_heads(heads, arrays, masks, "branches")
    assert compiled.plan.weights[-1].pieces[0].columns == ((0, 12),)
    heads, arrays, masks = case((True, False, True, False), share=1, head=6)
    compiled, _ = check_heads(heads, arrays, masks, "branches")
    assert compiled.plan.groups == ()


# Golden graph


def test_printed_graph_is_the_golden_one(tmp_path: Path, golden: Any) -> None:
    heads, arrays, masks = case(bias=True, norm=True, rotary=True, chain=True)
    path = heads.save(tmp_path / "model.onnx", arrays)
    out = compile_model(path, masks, CompileRecipe(lowering="branches")).save(tmp_path / "out")
    golden.check("branches-attention.txt", graph_text(out))
