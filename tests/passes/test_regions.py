"""The walk back from a product finds what may be cut, and says why not."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from patch_compile.compiler import compile_model
from patch_compile.passes.regions import Region, Uncut, find_region
from patch_compile.passes.sites import find_sites
from patch_compile.passes.structure import find_structure
from tests.passes.mlp import Mlp, _activate
from tests.support import masks_of, random_mask, random_weight, run_ort

node = helper.make_node
INNER, K = 8, 4


def graph(
    nodes: Sequence[onnx.NodeProto], *, outputs: Sequence[str] = ("y",), rank: int = 3
) -> ir.Model:
    """Products over `g` and `u` (4 to 8 features) and `d` (8 to 4), and other constants."""
    rng = np.random.default_rng(0)
    arrays = {
        "g": (K, INNER),
        "u": (K, INNER),
        "d": (INNER, K),
        "wide": (1, 1, INNER),
        "odd": (3, 1),
        "deep": (1, K, INNER),
        "line": (K,),
        "square": (INNER, INNER),
    }
    tensors = [
        numpy_helper.from_array(random_weight(rng, 1, int(np.prod(s))).reshape(s), name)
        for name, s in arrays.items()
    ]
    lead = ["batch", "sequence", "z"][: rank - 1]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [*lead, K])
    other = helper.make_tensor_value_info("other", TensorProto.FLOAT, [*lead, INNER])
    scale = helper.make_tensor_value_info("scale", TensorProto.FLOAT, [*lead, 1])
    made = helper.make_graph(
        list(nodes),
        "g",
        [x, other, scale],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        tensors,
    )
    opsets = [helper.make_opsetid(domain, 20) for domain in ("", "some.where")]
    model = helper.make_model(made, opset_imports=opsets)
    return ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(model))


def found(model: ir.Model) -> Region | Uncut | None:
    last = [node for node in model.graph if node.op_type in ("MatMul", "Gemm")][-1]
    return find_region(last)


GATE = node("MatMul", ["x", "g"], ["gate"], name="gate")
UP = node("MatMul", ["x", "u"], ["up"], name="up")
LAST = node("MatMul", ["h", "d"], ["y"], name="last")


def test_nodes_come_after_what_they_read() -> None:
    nodes: list[onnx.NodeProto] = [GATE, UP]
    act = _activate(nodes, "gelu_tanh", "gate")
    for number in nodes[2:]:
        for at, name in enumerate(number.input):
            if name in ("three", "cubic", "scale", "half", "one"):
                number.input[at] = "wide"
    region = found(graph([*nodes, node("Mul", [act, "up"], ["h"]), LAST]))
    assert isinstance(region, Region)
    assert [product.name for product in region.products] == ["gate", "up"]
    seen = {product.outputs[0] for product in region.products}
    for each in region.nodes:
        for value in each.inputs:
            assert value is not None
            assert value in seen or value.is_initializer()
        seen.add(each.outputs[0])
    assert region.root.inputs[0] in seen
    assert not region.flattened


def test_number_that_all_features_share_is_read_as_it_is() -> None:
    region = found(graph([GATE, node("Mul", ["gate", "scale"], ["h"]), LAST]))
    assert isinstance(region, Region)


@pytest.mark.parametrize(
    ("nodes", "why"),
    [
        ([node("Mul", ["gate", "other"], ["h"])], "also read 'other', an input"),
        (
            [node("Softmax", ["up"], ["s"]), node("Mul", ["gate", "s"], ["h"])],
            "also read 's', the output of a Softmax",
        ),
        (
            [node("Relu", ["gate"], ["h"]), node("Neg", ["h"], ["z"], name="spy")],
            "'h' is also read by Neg 'spy'",
        ),
        (
            [
                node("Relu", ["gate"], ["r"]),
                node("Mul", ["r", "up"], ["h"]),
                node("Neg", ["r"], ["z"], name="spy"),
            ],
            "'r' is read by Mul '', Neg 'spy'",
        ),
    ],
)
def test_refusal_names_what_is_in_the_way(nodes: list[onnx.NodeProto], why: str) -> None:
    outputs = ("y", "z") if any("z" in each.output for each in nodes) else ("y",)
    region = found(graph([GATE, UP, *nodes, LAST], outputs=outputs))
    assert isinstance(region, Uncut)
    assert why in region.reason
    assert region.products[0].name in ("gate", "up")


def test_constant_that_broadcasts_along_tokens_is_taken_whole() -> None:
    region = found(graph([GATE, node("Mul", ["gate", "odd"], ["h"]), LAST]))
    assert isinstance(region, Region)


@pytest.mark.parametrize(
    "nodes",
    [
        [node("Softmax", ["gate"], ["h"])],
        [node("Transpose", ["gate"], ["t"], perm=[1, 0, 2]), node("Relu", ["t"], ["h"])],
        [node("Identity", ["other"], ["h"])],
    ],
)
def test_products_beyond_other_operations_are_no_block(nodes: list[onnx.NodeProto]) -> None:
    assert found(graph([GATE, *nodes, LAST])) is None


def test_product_that_reads_another_of_the_region_is_refused() -> None:
    """The other is cut and would have to be whole for it."""
    square = node("MatMul", ["gate", "square"], ["gated"], name="square")
    region = found(graph([GATE, square, node("Mul", ["gate", "gated"], ["h"]), LAST]))
    assert isinstance(region, Uncut)
    assert region.reason == "'gate' is also read by MatMul 'square'"


@pytest.mark.parametrize(
    "product",
    [
        node("MatMul", ["x", "deep"], ["gate"]),
        node("MatMul", ["x", "line"], ["gate"]),
        node("MatMul", ["x", "g"], ["gate"], domain="some.where"),
    ],
    ids=["three axes", "one axis", "another domain"],
)
def test_product_over_no_matrix_makes_no_inner_axis(product: onnx.NodeProto) -> None:
    alone = [product, node("Relu", ["gate"], ["h"]), LAST]
    assert found(graph(alone)) is None
    beside = found(graph([product, UP, node("Mul", ["gate", "up"], ["h"]), LAST]))
    assert isinstance(beside, Uncut)
    assert "also read 'gate', the output of a MatMul" in beside.reason


def test_masked_product_after_one_over_no_matrix_is_compiled(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    model = graph([node("MatMul", ["x", "deep"], ["h"]), LAST])
    # onnx's newest is not what every ONNX Runtime reads.
    model.ir_version = 10
    ir.save(model, tmp_path / "model.onnx")
    weights = {t.name: numpy_helper.to_array(t) for t in ir.to_proto(model).graph.initializer}
    mask = random_mask(rng, "d", weights["d"].T, "weight")
    out = compile_model(tmp_path / "model.onnx", masks_of(mask)).save(tmp_path / "out")
    x = rng.standard_normal((2, 3, K)).astype(np.float32)
    expected = x @ weights["deep"] @ np.where(mask.keep().T, weights["d"], 0)
    given = {"x": x, "other": np.zeros((2, 3, INNER), np.float32), "scale": x[..., :1]}
    found = run_ort(out, given, optimise=True)["y"]
    # float32 sums of at most 8 products, twice in a row, in another order.
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


def test_reshape_on_three_axes_is_refused() -> None:
    """Rows of the root need not be rows of the products there."""
    shape = node("Constant", [], ["shape"], value_ints=[-1, 2, INNER])
    model = graph([GATE, shape, node("Reshape", ["gate", "shape"], ["h"]), LAST])
    region = found(model)
    assert isinstance(region, Uncut)
    assert "a Reshape lies between them and" in region.reason


@pytest.mark.parametrize("operand", ["scale", "odd"])
def test_operand_with_rows_of_its_own_is_refused_beside_a_reshape(operand: str) -> None:
    """Dropping the Reshapes would broadcast it along other rows."""
    flat = node("Constant", [], ["flat"], value_ints=[-1, K])
    back = node("Constant", [], ["back"], value_ints=[2, 3, INNER])
    again = node("Constant", [], ["again"], value_ints=[-1, INNER])
    model = graph(
        [
            *(flat, back, again),
            node("Reshape", ["x", "flat"], ["x2"]),
            node("MatMul", ["x2", "g"], ["gate"], name="gate"),
            node("Reshape", ["gate", "back"], ["gate3"]),
            node("Mul", ["gate3", operand], ["m"]),
            node("Reshape", ["m", "again"], ["h"]),
            LAST,
        ]
    )
    region = found(model)
    assert isinstance(region, Uncut)
    assert f"'{operand}' stands beside a Reshape" in region.reason


def test_long_chains_end_the_search() -> None:
    chain = [
        node("Neg", [f"n{i}"] if i else ["gate"], [f"n{i + 1}"], name=f"neg{i}")
        for i in range(60)
    ]
    region = found(graph([GATE, *chain, node("Relu", ["n60"], ["h"]), LAST]))
    assert region is None or isinstance(region, Uncut)


def test_structure_lists_blocks_and_siblings() -> None:
    model = graph([GATE, UP, node("Mul", ["gate", "up"], ["h"]), LAST])
    sites, _ = find_sites(model)
    structure = find_structure(model, sites)
    (block,) = structure.blocks
    assert (block.rows, block.columns, block.one_input) == (("g", "u"), "d", True)
    assert block.refusal is None
    assert structure.siblings == (("g", "u"),)


def test_rms_norm_before_a_product_is_no_block() -> None:
    """x / rms(x) * w is elementwise at its end, and not between two products."""
    nodes = [
        GATE,
        node("Mul", ["gate", "gate"], ["sq"]),
        node("ReduceMean", ["sq"], ["mean"], keepdims=1),
        node("Sqrt", ["mean"], ["rms"]),
        node("Div", ["gate", "rms"], ["h"]),
        LAST,
    ]
    region = found(graph(nodes))
    assert isinstance(region, Uncut)
    assert "'gate' is also read by" in region.reason or "'mean'" in region.reason


def test_mlp_helper_of_these_tests_is_a_block(tmp_path: object) -> None:
    assert Mlp(4, 8).makers == ("gate", "up")
