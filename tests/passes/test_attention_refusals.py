"""Where heads meet, or may, an attention stays whole and the reason names the operation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from patch_compile.compiler import plan_model
from patch_compile.passes.attention import Attention, Whole, find_attention
from patch_compile.passes.sites import find_sites
from patch_compile.passes.structure import find_structure
from patch_compile.recipe import CompileRecipe
from tests.passes.genai import genai_model
from tests.passes.heads import Heads, tied_heads
from tests.support import masks_of, random_mask

Edit = Callable[[onnx.GraphProto], None]


def found(folder: Path, heads: Heads, edit: Edit | None = None) -> Attention | Whole | None:
    """What is found before the last product of a graph that was changed by hand."""
    path = heads.save(folder / "model.onnx", heads.arrays(np.random.default_rng(0)))
    model = onnx.load(path)
    if edit is not None:
        edit(model.graph)
        # What was inferred before the edit may be wrong now.
        del model.graph.value_info[:]
        model = onnx.shape_inference.infer_shapes(model)
    graph = ir.serde.deserialize_model(model)
    return find_attention([node for node in graph.graph if node.op_type == "MatMul"][-1])


def node(graph: onnx.GraphProto, name: str) -> onnx.NodeProto:
    return next(each for each in graph.node if each.name == name)


def attribute(name: str, **values: Any) -> Edit:
    def edit(graph: onnx.GraphProto) -> None:
        changed = node(graph, name)
        kept = [each for each in changed.attribute if each.name not in values]
        del changed.attribute[:]
        made = [helper.make_attribute(key, value) for key, value in values.items()]
        changed.attribute.extend([*kept, *made])

    return edit


def operator(name: str, kind: str, *more: str) -> Edit:
    def edit(graph: onnx.GraphProto) -> None:
        changed = node(graph, name)
        changed.op_type = kind
        changed.input.extend(more)

    return edit


def insert(after: str, kind: str, *inputs: str, **attributes: Any) -> Edit:
    """Puts a node between a value and the node that reads it first."""

    def edit(graph: onnx.GraphProto) -> None:
        reader = next(each for each in graph.node if after in each.input)
        place = list(reader.input).index(after)
        made = helper.make_node(kind, inputs, ["new"], name="new", **attributes)
        reader.input[place] = "new"
        graph.node.insert(list(graph.node).index(reader), made)

    return edit


def also_input(name: str, *shape: str | int) -> Edit:
    def edit(graph: onnx.GraphProto) -> None:
        kept = [each for each in graph.input if each.name != name]
        del graph.input[:]
        graph.input.extend(
            [*kept, helper.make_tensor_value_info(name, TensorProto.FLOAT, [*shape])]
        )

    return edit


def both(*edits: Edit) -> Edit:
    def edit(graph: onnx.GraphProto) -> None:
        for each in edits:
            each(graph)

    return edit


NORMED = Heads(norm=True)
CASES: dict[str, tuple[Heads, Edit]] = {
    "Softmax 'weights' normalises across heads": (
        Heads(),
        attribute("weights", axis=1),
    ),
    "Hardmax 'weights' may mix heads": (Heads(), operator("weights", "Hardmax")),
    "Add 'scores' reads 'mask', which has a part for every head or may have one": (
        Heads(),
        also_input("mask", "batch", 6, "sequence", "sequence"),
    ),
    "Add 'scores' reads 'mask', whose shape is unknown": (
        Heads(),
        lambda graph: next(
            i for i in graph.input if i.name == "mask"
        ).type.tensor_type.ClearField("shape"),
    ),
    "Attention 'attended' reads 'mask', which may have a part for every head": (
        Heads(form="op"),
        also_input("mask", "batch", 6, "sequence", "sequence"),
    ),
    "MultiHeadAttention 'attention' reads 'mask', which may have a part for every head": (
        Heads(form="flat", share=1),
        also_input("mask", "batch", 3, "sequence", "sequence"),
    ),
    "ReduceMean 'q_mean' reduces across heads": (
        NORMED,
        lambda graph: node(graph, "q_mean").input.__setitem__(1, "second"),
    ),
    "Reshape 'joined' joins or parts groups of heads": (
        Heads(),
        attribute("back", perm=[0, 1, 2, 3]),
    ),
    "Concat 'new' joins heads to 'past', which holds those of all groups": (
        Heads(share=1),
        both(
            also_input("past", "batch", 3, "before", 4),
            insert("k_heads", "Concat", "past", "k_heads", axis=2),
        ),
    ),
    "LayerNormalization 'new' reads 'given', which has a part for every head": (
        Heads(),
        both(
            also_input("given", 6, 1, 4),
            insert("q_heads", "LayerNormalization", "q_heads", "given", axis=-1),
        ),
    ),
    "'q' is also read by MatMul 'k'": (
        Heads(share=1, hidden=12),
        lambda graph: node(graph, "k").input.__setitem__(0, "q"),
    ),
    "MatMul 'products' sums over heads": (
        Heads(share=1),
        attribute("k_heads", perm=[0, 1, 2, 3]),
    ),
    "Slice 'new' cuts the axis of the heads": (
        Heads(share=1),
        insert("v_heads", "Slice", "v_heads", "start", "two", "one"),
    ),
    "Gather 'new' may mix heads": (
        Heads(share=1),
        insert("v_heads", "Gather", "v_heads", "start", axis=1),
    ),
    "'k_heads', which holds all heads, is an output of the graph": (
        Heads(outputs=["k_heads"]),
        lambda graph: None,
    ),
}


def _with_numbers(edit: Edit) -> Edit:
    """Constants that the edits read."""

    def edited(graph: onnx.GraphProto) -> None:
        edit(graph)
        known = {tensor.name for tensor in graph.initializer}
        for name, value in {"start": 0, "one": 1, "two": 2, "second": -2}.items():
            if name not in known:
                graph.initializer.append(
                    helper.make_tensor(name, TensorProto.INT64, [1], [value])
                )

    return edited


@pytest.mark.parametrize("why", CASES)
def test_refusal_names_the_operation(tmp_path: Path, why: str) -> None:
    heads, edit = CASES[why]
    whole = found(tmp_path, heads, _with_numbers(edit))
    assert isinstance(whole, Whole), whole
    assert why in whole.reason
    assert len(whole.products) == 3


@pytest.mark.parametrize(
    "heads", [Heads(), NORMED, Heads(form="op"), Heads(form="flat", share=1)], ids=str
)
def test_the_same_graphs_are_cut_without_the_edit(tmp_path: Path, heads: Heads) -> None:
    attention = found(tmp_path, heads, _with_numbers(lambda graph: None))
    assert isinstance(attention, Attention)
    assert (attention.groups, attention.stacks) == (3, (1, 1, 1))


def test_a_table_multiplied_from_constants_is_read_as_it_is(tmp_path: Path) -> None:
    """As a rotation's angles are: frequencies times positions, on three axes."""
    node = helper.make_node
    nodes = [
        node("ConstantOfShape", ["ones"], ["frequencies"]),
        node("MatMul", ["frequencies", "positions"], ["table"]),
        node("Add", ["mask", "table"], ["sum"]),
    ]

    def edit(graph: onnx.GraphProto) -> None:
        positions = np.ones((1, 1, 1), np.float32)
        graph.initializer.append(numpy_helper.from_array(np.array([1, 1, 1]), "ones"))
        graph.initializer.append(numpy_helper.from_array(positions, "positions"))
        reader = next(each for each in graph.node if "mask" in each.input)
        reader.input[list(reader.input).index("mask")] = "sum"
        for each in reversed(nodes):
            graph.node.insert(0, each)

    attention = found(tmp_path, Heads(), edit)
    assert isinstance(attention, Attention)
    assert [product.name for product in attention.products] == ["q", "k", "v"]


def test_products_before_no_attention_are_none(tmp_path: Path) -> None:
    path = Heads().save(tmp_path / "m.onnx", Heads().arrays(np.random.default_rng(0)))
    model = ir.load(path)
    first = next(node for node in model.graph if node.op_type == "MatMul")
    assert find_attention(first) is None


@pytest.mark.parametrize(("norm", "kernels"), [(False, 2), (True, 3)])
def test_kernels_that_run_again_are_counted(tmp_path: Path, norm: bool, kernels: int) -> None:
    """The attention, queries for their scale, and keys where they are normalised."""
    attention = found(tmp_path, Heads(norm=norm, bias=True))
    assert isinstance(attention, Attention)
    assert attention.kernels == kernels


def test_a_fused_attention_with_a_cache_stays_whole(tmp_path: Path) -> None:
    genai_model(tmp_path / "model.onnx", np.random.default_rng(0))
    model = ir.load(tmp_path / "model.onnx")
    structure = find_structure(model, find_sites(model)[0])
    block = next(block for block in structure.blocks if block.attends)
    assert block.heads is None
    assert block.refusal == (
        "'present.0.key', which holds all heads, is an output of the graph"
    )


def test_the_reason_reaches_the_plan(tmp_path: Path) -> None:
    heads = Heads(outputs=["k_heads"])
    rng = np.random.default_rng(0)
    arrays = heads.arrays(rng)
    path = heads.save(tmp_path / "m.onnx", arrays)
    masks = tied_heads(rng, heads, arrays, np.array([True, False, True]))
    planned = plan_model(path, masks, CompileRecipe(min_gain=0.0))
    assert planned.plan.weights[0].reason.endswith(
        "a Gather restores the order: 'k_heads', which holds all heads, is an output of the "
        "graph"
    )
    lone = masks_of(random_mask(rng, "q.weight", arrays["q.weight"], "band:8"))
    assert plan_model(path, lone, CompileRecipe(min_gain=0.0)).plan.groups == ()
