"""Which products over constants are found, under which names, and why others are not."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from patch_compile.passes.sites import (
    LOWERING,
    WEIGHT,
    Refusal,
    Site,
    constant_weight,
    find_sites,
)
from tests.support import FLOATS, Linear, linear_model, random_weight

W = np.arange(1, 33, dtype=np.float32).reshape(4, 8)


def model_of(
    nodes: Sequence[onnx.NodeProto],
    initializers: Sequence[onnx.TensorProto] = (),
    inputs: Sequence[str] = ("x",),
) -> ir.Model:
    """A graph over float inputs of unknown shape; its output is `y`."""
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inputs]
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", made, [y], initializers)
    domains = {node.domain for node in nodes} - {""}
    opsets = [helper.make_opsetid("", 20), *(helper.make_opsetid(d, 1) for d in domains)]
    return ir.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=10))


def tensor(array: Any, name: str = "w") -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(array), name)


def matmul(*inputs: str, **extra: Any) -> onnx.NodeProto:
    return helper.make_node("MatMul", inputs or ["x", "w"], ["y"], **extra)


def one_site(model: ir.Model) -> Site:
    sites, refusals = find_sites(model)
    assert refusals == []
    (site,) = sites
    return site


def refusal(model: ir.Model) -> Refusal:
    sites, refusals = find_sites(model)
    assert sites == []
    (found,) = refusals
    return found


@pytest.mark.parametrize("form", ["matmul", "gemm", "gemm_b", "transpose", "constant"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_weight_is_found_as_n_by_k_however_it_is_held(
    tmp_path: Path, rng: np.random.Generator, form: str, dtype: str
) -> None:
    weight = random_weight(rng, 6, 10, dtype)
    path = linear_model([Linear("a", weight, form)], tmp_path / "m.onnx", lead=(3,))
    site = one_site(ir.load(path))
    assert site.name == "a.weight"
    assert site.weight.shape == (6, 10)
    np.testing.assert_array_equal(site.weight.bits().view(weight.dtype), weight.T)


def test_gemm_over_a_transposed_weight_is_turned_twice() -> None:
    nodes = [
        helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
        helper.make_node("Gemm", ["x", "t"], ["y"], transB=1),
    ]
    site = one_site(model_of(nodes, [tensor(W)]))
    assert site.weight.transposed
    assert site.weight.shape == (8, 4)


def test_transpose_without_perm_swaps_two_axes() -> None:
    nodes = [helper.make_node("Transpose", ["w"], ["t"]), matmul("x", "t")]
    assert one_site(model_of(nodes, [tensor(W)])).weight.shape == (4, 8)


def test_product_of_two_activations_is_no_site() -> None:
    assert find_sites(model_of([matmul("x", "z")], inputs=("x", "z"))) == ([], [])


def test_weight_on_the_left_is_no_site() -> None:
    assert find_sites(model_of([matmul("w", "x")], [tensor(W)])) == ([], [])


def test_computed_weight_is_no_site() -> None:
    nodes = [helper.make_node("Relu", ["w"], ["r"]), matmul("x", "r")]
    model = model_of(nodes, [tensor(W)])
    assert find_sites(model) == ([], [])
    assert constant_weight(model.graph[1]) is None


def test_same_operator_of_another_domain_is_no_site() -> None:
    assert find_sites(model_of([matmul(domain="my.own")], [tensor(W)])) == ([], [])


def test_sites_come_in_graph_order(tmp_path: Path, rng: np.random.Generator) -> None:
    linears = [Linear(name, random_weight(rng, 4, 8)) for name in ("c", "a", "b")]
    sites, _ = find_sites(ir.load(linear_model(linears, tmp_path / "m.onnx")))
    assert [site.name for site in sites] == ["c.weight", "a.weight", "b.weight"]


def test_names_are_tried_from_the_most_certain_on() -> None:
    node = matmul(name="/model/layers.0/mlp/up_proj/MatMul")
    node.metadata_props.add(
        key="pkg.torch.onnx.name_scopes", value="['', 'model.layers.0.mlp.gate', 'linear']"
    )
    node.metadata_props.add(key=WEIGHT, value="exported.weight")
    site = one_site(model_of([node], [tensor(W)]))
    assert site.parameters == (
        "exported.weight",
        "model.layers.0.mlp.gate.weight",
        "w",
        "model.layers.0.mlp.up_proj.weight",
    )
    assert site.label == "exported.weight"


def test_genai_initializer_gives_its_parameter() -> None:
    name = "model.layers.0.attn.qkv_proj.MatMul.weight"
    site = one_site(model_of([matmul("x", name)], [tensor(W, name)]))
    assert site.label == "model.layers.0.attn.qkv_proj.weight"


@pytest.mark.parametrize("scopes", ["", "['linear']", "not python", "{}", "[", "3", "[1, 2"])
def test_damaged_scopes_give_no_name(scopes: str) -> None:
    node = matmul()
    node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=scopes)
    assert one_site(model_of([node], [tensor(W)])).parameters == ("w",)


def test_weight_of_two_products_is_one_site_with_the_names_of_both() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="/one/MatMul"),
        helper.make_node("MatMul", ["x", "w"], ["b"], name="/two/MatMul"),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    site = one_site(model_of(nodes, [tensor(W)]))
    assert site.parameters == ("w", "one.weight", "two.weight")


def test_weight_multiplied_both_ways_round_is_refused() -> None:
    """One mask cannot be (N, K) for one product and (K, N) for the other."""
    square = np.ones((4, 4), np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Gemm", ["x", "w"], ["b"], transB=1),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    found = refusal(model_of(nodes, [tensor(square)]))
    assert (found.name, found.reason) == ("w", "products multiply by it both ways round")


def branch(name: str, nodes: Sequence[onnx.NodeProto], tensors: Any = ()) -> onnx.GraphProto:
    y = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, None)
    return helper.make_graph(nodes, name, [], [y], list(tensors))


def test_weight_inside_a_branch_is_refused() -> None:
    product = helper.make_node("MatMul", ["x", "w"], ["t_y"], name="/inner/fc/MatMul")
    then = branch("t", [product], [tensor(W)])
    other = branch("e", [helper.make_node("Identity", ["x"], ["e_y"])])
    node = helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other)
    found = refusal(model_of([node], inputs=("x", "c")))
    assert found.reason == "'/inner/fc/MatMul' lies in a branch or loop body"
    assert "inner.fc.weight" in found.parameters


def test_weight_used_in_a_branch_too_is_refused_for_all_its_products() -> None:
    """Lowering the outer product alone would compute two different weights."""
    then = branch("t", [helper.make_node("MatMul", ["x", "w"], ["t_y"], name="inner")])
    other = branch("e", [helper.make_node("Identity", ["x"], ["e_y"])])
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("If", ["c"], ["b"], then_branch=then, else_branch=other),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    found = refusal(model_of(nodes, [tensor(W)], inputs=("x", "c")))
    assert found.reason == "'inner' lies in a branch or loop body"


def test_weight_that_a_caller_may_replace_is_refused() -> None:
    found = refusal(model_of([matmul()], [tensor(W)], inputs=("x", "w")))
    assert found == Refusal(
        "w", ("w",), "a graph input may replace this weight; take it off the graph's inputs"
    )


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (W.astype(np.float64), "element type DOUBLE is not a float of 16 or 32 bits"),
        (W.astype(np.int32), "element type INT32 is not a float of 16 or 32 bits"),
        (W[None], "has 3 axes, not 2"),
        (W[0], "has 1 axes, not 2"),
        (W[:0], "has shape (0, 8)"),
    ],
)
def test_tensor_that_no_mask_describes_is_refused(array: Any, reason: str) -> None:
    assert refusal(model_of([matmul()], [tensor(array)])).reason == reason


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"alpha": 0.5}, "Gemm scales by alpha = 0.5"),
        ({"beta": 2.0}, "Gemm scales by beta = 2.0"),
        ({"transA": 1}, "Gemm transposes its first operand"),
    ],
)
def test_gemm_that_does_more_than_multiply_is_refused(
    attributes: dict[str, Any], reason: str
) -> None:
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], **attributes)
    model = model_of([node], [tensor(W), tensor(W[0], "b")])
    assert refusal(model).reason == reason


def test_gemm_with_its_defaults_spelled_out_is_taken() -> None:
    node = helper.make_node("Gemm", ["x", "w"], ["y"], alpha=1.0, beta=1.0, transA=0, transB=0)
    assert one_site(model_of([node], [tensor(W)])).weight.shape == (8, 4)


def test_4_bit_weight_is_refused_under_the_name_of_its_parameter() -> None:
    """What onnxruntime-genai's builder writes with `-p int4`."""
    stem = "model.layers.0.attn.q_proj.MatMul.weight"
    node = helper.make_node(
        "MatMulNBits",
        ["x", f"{stem}_Q4", f"{stem}_scales"],
        ["y"],
        domain="com.microsoft",
        name="/model/layers.0/attn/q_proj/MatMul_Q4",
        K=32,
        N=4,
        bits=4,
        block_size=32,
    )
    tensors = [
        tensor(np.zeros((4, 1, 16), np.uint8), f"{stem}_Q4"),
        tensor(np.ones(4, np.float32), f"{stem}_scales"),
    ]
    found = refusal(model_of([node], tensors))
    assert found.reason == "element type UINT8 is not a float of 16 or 32 bits"
    assert "model.layers.0.attn.q_proj.weight" in found.parameters


@pytest.mark.parametrize("turned", [False, True])
def test_8_bit_weight_behind_a_dequantize_is_refused(turned: bool) -> None:
    nodes = [helper.make_node("DequantizeLinear", ["w_q", "s"], ["w"])]
    if turned:
        nodes.append(helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]))
    nodes.append(matmul("x", "t" if turned else "w", name="/model/layers.0/fc/MatMul"))
    tensors = [tensor(W.astype(np.int8), "w_q"), tensor(np.float32(1), "s")]
    found = refusal(model_of(nodes, tensors))
    assert found.name == "w_q"
    assert found.reason == "element type INT8 is not a float of 16 or 32 bits"
    assert "model.layers.0.fc.weight" in found.parameters


def test_piece_of_a_compiled_model_is_found_only_when_asked_for() -> None:
    node = matmul()
    node.metadata_props.add(key=LOWERING, value="whole")
    model = model_of([node], [tensor(W)])
    assert refusal(model).reason == "already compiled"
    sites, refusals = find_sites(model, compiled=True)
    assert [site.name for site in sites] == ["w"]
    assert refusals == []
