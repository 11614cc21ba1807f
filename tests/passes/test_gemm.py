"""A region of Gemms is the same before and after each becomes a product and an Add."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from patch_compile.compiler import Compiled, compile_model
from patch_compile.recipe import CompileRecipe
from patch_compile.tiles.masks import Masks
from tests.support import masks_of, random_mask, random_weight, run_ort

K, INNER, ROWS, HEADS = 16, 12, 6, 3
DENSE = np.array([False, True, False])
# float32 sums of at most 16 products of numbers below 8, three in a row, in another order;
# outputs reach some hundreds.
RTOL, ATOL = 1e-4, 2e-3

node = helper.make_node
Nodes = Sequence[onnx.NodeProto]
Arrays = dict[str, NDArray[Any]]
SHAPES: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("q", "k", "v"), (K, INNER)),
    "square": (INNER, INNER),
    "o": (INNER, K),
    **dict.fromkeys(("line", "may"), (INNER,)),
    "row": (1, INNER),
    "rows": (ROWS, INNER),
    "column": (ROWS, 1),
    "one": (1,),
    "number": (),
    "left": (4,),
    "right": (8,),
}
FIXED = {
    "flat": [ROWS, K],
    "flat_inner": [ROWS, INNER],
    "deep_inner": [2, 3, INNER],
    "parted": [2, 3, HEADS, INNER // HEADS],
}
GIVEN = {"given": (INNER,), "given_rows": (ROWS, INNER), "given_column": (ROWS, 1)}


def arrays() -> Arrays:
    rng = np.random.default_rng(0)
    made: Arrays = {
        name: random_weight(rng, 1, int(np.prod(shape))).reshape(shape)
        for name, shape in SHAPES.items()
    }
    return made | {name: np.array(shape) for name, shape in FIXED.items()}


def save(path: Path, nodes: Nodes, held: Arrays) -> Path:
    """Writes a graph from x (2, 3, K), and what it is given besides, to y."""
    info, kind = helper.make_tensor_value_info, TensorProto.FLOAT
    read = {name for each in nodes for name in each.input}
    shapes = {"x": (2, 3, K), **GIVEN, "may": SHAPES["may"]}
    graph = helper.make_graph(
        list(nodes),
        "g",
        [info(name, kind, shape) for name, shape in shapes.items() if name in read],
        [info("y", kind, None)],
        [numpy_helper.from_array(array, n) for n, array in held.items() if n in read],
    )
    opsets = [helper.make_opsetid("", 20)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.save(onnx.shape_inference.infer_shapes(model, data_prop=True), path)
    return path


def cut(folder: Path, nodes: Nodes, made: Sequence[str], lowering: str) -> Compiled:
    """Compiles and compares with the original on masked weights, in ONNX Runtime."""
    rng, held = np.random.default_rng(1), arrays()
    tiles = dict.fromkeys(made, ("band:4", DENSE[:, None])) | {"o": ("column:4", DENSE[None])}
    masks: Masks = masks_of(
        *(
            random_mask(rng, name, held[name].T, tile, dense=dense)
            for name, (tile, dense) in tiles.items()
        )
    )
    path = save(folder / "model.onnx", nodes, held)
    recipe = CompileRecipe(lowering=lowering, min_gain=0.0)  # type: ignore[arg-type]
    compiled = compile_model(path, masks, recipe)
    keeps = {name: mask.keep().T for name, mask in masks.weights.items()}
    kept = {n: np.where(keeps.get(n, True), a, 0).astype(a.dtype) for n, a in held.items()}
    original = save(folder / "masked.onnx", nodes, kept)
    names = [value.name for value in onnx.load(path).graph.input]
    shapes = {"x": (2, 3, K), **GIVEN, "may": SHAPES["may"]}
    given = {n: rng.standard_normal(shapes[n]).astype(np.float32) for n in names}
    expected = run_ort(original, given, optimise=False)["y"]
    found = run_ort(compiled.save(folder / "out"), given, optimise=True)["y"]
    np.testing.assert_allclose(found, expected, rtol=RTOL, atol=ATOL)
    return compiled


# By bias of the first product: nodes that make it, and why nothing is cut; None if it is.
BIASES: dict[str, tuple[str, Nodes, str | None]] = {
    "constant": ("line", (), None),
    "one row": ("row", (), None),
    "rows": ("rows", (), None),
    "one number": ("one", (), None),
    "a number": ("number", (), None),
    "one number a row": ("column", (), None),
    "given numbers": ("given_column", (), None),
    "handed on": ("bias", [node("Identity", ["line"], ["bias"])], None),
    "of operations": ("bias", [node("Tanh", ["line"], ["bias"])], None),
    "handed on twice": (
        "bias",
        [node("Identity", ["line"], ["bias"]), node("Neg", ["bias"], ["z"], name="spy")],
        "'bias' is read by Gemm 'q', Neg 'spy'",
    ),
    "given": ("given", (), "the operations between also read 'given', an input"),
    "given rows": ("given_rows", (), "also read 'given_rows', an input"),
    "may be given": ("may", (), "also read 'may', which an input may replace"),
    "joined": (
        "bias",
        [node("Concat", ["left", "right"], ["bias"], axis=0)],
        "also read 'bias', the output of a Concat",
    ),
    "a product": (
        "k_made",
        [node("Gemm", ["x2", "k", "line"], ["k_made"])],
        "Gemm 'q' adds another product, 'k_made'",
    ),
    "after a product": (
        "bias",
        [node("Gemm", ["x2", "k", "line"], ["k_made"]), node("Relu", ["k_made"], ["bias"])],
        None,
    ),
}


@pytest.mark.parametrize("kind", BIASES)
@pytest.mark.parametrize("lowering", ["branches", "sink-order"])
def test_bias_of_a_first_product_is_cut_or_named(
    tmp_path: Path, kind: str, lowering: str
) -> None:
    bias, nodes, why = BIASES[kind]
    products = [
        node("Reshape", ["x", "flat"], ["x2"]),
        *nodes,
        node("Gemm", ["x2", "q", bias], ["q_made"], name="q"),
        node("Relu", ["q_made"], ["h"]),
        node("Gemm", ["h", "o"], ["y"], name="o"),
    ]
    made = ["q", *(["k"] if "product" in kind else [])]
    weights = cut(tmp_path, products, made, lowering).report.weights
    if why is None:
        assert {weight.lowering for weight in weights} == {lowering}
    else:
        assert all(why in weight.reason for weight in weights)


@pytest.mark.parametrize("bias", ["line", "one", "rows", "given_column"])
def test_bias_beside_a_reshape_is_one_number_a_feature(tmp_path: Path, bias: str) -> None:
    products = [
        node("Reshape", ["x", "flat"], ["x2"]),
        node("Gemm", ["x2", "q", bias], ["q_made"], name="q"),
        node("Reshape", ["q_made", "deep_inner"], ["q_deep"]),
        node("Relu", ["q_deep"], ["h_deep"]),
        node("Reshape", ["h_deep", "flat_inner"], ["h"]),
        node("Gemm", ["h", "o"], ["y"], name="o"),
    ]
    weights = cut(tmp_path, products, ["q"], "branches").report.weights
    if bias in ("line", "one"):
        assert {weight.lowering for weight in weights} == {"branches"}
    else:
        assert all(f"'{bias}' stands beside a Reshape" in w.reason for w in weights)


def test_bias_that_a_last_product_adds_of_the_region_is_refused(tmp_path: Path) -> None:
    products = [
        node("Reshape", ["x", "flat"], ["x2"]),
        node("Gemm", ["x2", "q"], ["q_made"], name="q"),
        node("Relu", ["q_made"], ["h"]),
        node("Gemm", ["h", "square", "h"], ["y"], name="o"),
    ]
    path = save(tmp_path / "model.onnx", products, arrays())
    rng, held = np.random.default_rng(1), arrays()
    first = random_mask(rng, "q", held["q"].T, "band:4", dense=DENSE[:, None])
    last = random_mask(rng, "square", held["square"].T, "column:4", dense=DENSE[None])
    recipe = CompileRecipe(lowering="branches", min_gain=0.0)
    compiled = compile_model(path, masks_of(first, last), recipe)
    assert "'h' is also read by Gemm 'o'" in compiled.report.weights[0].reason


@pytest.mark.parametrize("count", [46, 47, 48])
def test_longest_region_counts_the_adds_to_come(tmp_path: Path, count: int) -> None:
    chain = [node("Neg", [f"n{i}"], [f"n{i + 1}"]) for i in range(count)]
    products = [
        node("Reshape", ["x", "flat"], ["x2"]),
        node("Gemm", ["x2", "q", "line"], ["n0"], name="q"),
        *chain,
        node("Gemm", [f"n{count}", "o"], ["y"], name="o"),
    ]
    weights = cut(tmp_path, products, ["q"], "branches").report.weights
    assert (weights[0].lowering == "branches") == (count < 48)


# As above, of the queries of an attention.
HEADED: dict[str, tuple[str, Nodes, str | None]] = {
    "constant": ("line", (), None),
    "one row": ("row", (), None),
    "given numbers": ("given_one", [node("Identity", ["one"], ["given_one"])], None),
    "rows": ("rows", (), "Gemm 'q' adds 'rows', which has rows"),
    "given": ("given", (), "Gemm 'q' reads 'given', which has a part for every head"),
    "may be given": ("may", (), "Gemm 'q' reads 'may', which has a part for every head"),
    "joined": (
        "bias",
        [node("Concat", ["left", "right"], ["bias"], axis=0)],
        "Gemm 'q' reads 'bias', which has a part for every head",
    ),
    "keys": ("k_made", (), "'k_made' is also read by Gemm 'q'"),
    "of keys": (
        "bias",
        [node("Relu", ["k_made"], ["bias"])],
        "'bias' is also read by Gemm 'q'",
    ),
}


@pytest.mark.parametrize("kind", HEADED)
def test_bias_of_queries_is_cut_or_named(tmp_path: Path, kind: str) -> None:
    bias, nodes, why = HEADED[kind]
    turned = {"q": [0, 2, 1, 3], "k": [0, 2, 3, 1], "v": [0, 2, 1, 3]}
    products = [
        node("Reshape", ["x", "flat"], ["x2"]),
        *(node("Gemm", ["x2", n, "line"], [f"{n}_made"], name=n) for n in "kv"),
        *nodes,
        node("Gemm", ["x2", "q", bias], ["q_made"], name="q"),
        *(node("Reshape", [f"{n}_made", "parted"], [f"{n}_parted"]) for n in "qkv"),
        *(
            node("Transpose", [f"{n}_parted"], [f"{n}_heads"], perm=perm)
            for n, perm in turned.items()
        ),
        node("MatMul", ["q_heads", "k_heads"], ["scores"]),
        node("Softmax", ["scores"], ["weights"], axis=-1),
        node("MatMul", ["weights", "v_heads"], ["attended"]),
        node("Transpose", ["attended"], ["back"], perm=[0, 2, 1, 3]),
        node("Reshape", ["back", "flat_inner"], ["joined"]),
        node("Gemm", ["joined", "o"], ["y"], name="o"),
    ]
    weights = cut(tmp_path, products, ["q", "k", "v"], "branches").report.weights
    if why is None:
        assert {weight.lowering for weight in weights} == {"branches"}
    else:
        assert all(why in weight.reason for weight in weights)
