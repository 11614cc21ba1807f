"""Small models and masks for tests, built with onnx.helper: nothing of ours makes them."""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from patch_compile.io.digests import digests
from patch_compile.io.masks_file import save_masks
from patch_compile.tiles.geometry import Geometry, TileGrid
from patch_compile.tiles.masks import Masks
from patch_compile.tiles.pattern import top2_of_4
from patch_compile.tiles.weight_mask import WeightMask, from_keep

# 1.22, the oldest that we admit, knows neither opset 23 nor all that genai's builder writes.
OLD_ONNXRUNTIME = tuple(map(int, ort.__version__.split(".")[:2])) < (1, 23)

FLOATS = {
    "float32": (np.dtype(np.float32), TensorProto.FLOAT),
    "float16": (np.dtype(np.float16), TensorProto.FLOAT16),
    "bfloat16": (np.dtype(ml_dtypes.bfloat16), TensorProto.BFLOAT16),
}


@dataclass(frozen=True)
class Linear:
    """One linear layer of a test model: its weight (N, K) and how the graph holds it."""

    name: str
    weight: NDArray[Any]
    form: str = "matmul"
    bias: NDArray[Any] | None = None


def random_weight(
    rng: np.random.Generator, n: int, k: int, dtype: str = "float32"
) -> NDArray[Any]:
    """A weight (N, K) without zeros, so that its mask can be told from its values."""
    w = rng.uniform(0.5, 1.5, (n, k)) * rng.choice([-1.0, 1.0], (n, k))
    weight: NDArray[Any] = w.astype(FLOATS[dtype][0])
    return weight


def random_mask(
    rng: np.random.Generator,
    name: str,
    weight: NDArray[Any],
    geometry: str | TileGrid,
    density: float = 0.5,
    *,
    dense: NDArray[np.bool_] | None = None,
    with_digests: bool = True,
) -> WeightMask:
    """A mask with random 2:4 patterns; its tiles are dense at random, or as given."""
    n, k = weight.shape
    grid = (
        geometry if isinstance(geometry, TileGrid) else Geometry.parse(geometry).grid((n, k))
    )
    dense = rng.random(grid.tiles) < density if dense is None else dense
    padded = -(-k // 4) * 4
    keep = top2_of_4(rng.random((n, padded)))[:, :k] | grid.expand(dense)
    known = digests(weight.astype(np.float32)) if with_digests else None
    return from_keep(name, grid, dense, keep, digests=known, geometry=str(geometry))


def masks_of(*masks: WeightMask) -> Masks:
    return Masks({mask.name: mask for mask in masks})


def linear_model(
    linears: Sequence[Linear],
    path: Path,
    *,
    lead: Sequence[int | str] = ("batch", "sequence"),
    external: bool = False,
    opset: int = 20,
) -> Path:
    """Every linear reads the one input `x` (..., K) and gives the output `y_<name>`."""
    first = linears[0].weight
    kind = next(code for dtype, code in FLOATS.values() if dtype == first.dtype)
    nodes: list[onnx.NodeProto] = []
    tensors: list[onnx.TensorProto] = []
    outputs = []
    for linear in linears:
        nodes += _nodes(linear, tensors)
        shape = [*lead, linear.weight.shape[0]]
        outputs.append(helper.make_tensor_value_info(f"y_{linear.name}", kind, shape))
    x = helper.make_tensor_value_info("x", kind, [*lead, first.shape[1]])
    graph = helper.make_graph(nodes, "linears", [x], outputs, tensors)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10
    )
    onnx.checker.check_model(model)
    onnx.save(
        model,
        path,
        save_as_external_data=external,
        location=f"{path.name}.data",
        size_threshold=0,
    )
    return path


def _nodes(linear: Linear, tensors: list[onnx.TensorProto]) -> list[onnx.NodeProto]:
    name, output = f"{linear.name}.weight", f"y_{linear.name}"
    stored = linear.weight if linear.form in ("gemm_b", "transpose") else linear.weight.T
    tensor = numpy_helper.from_array(np.ascontiguousarray(stored), name)
    inputs, product = ["x", name], output if linear.bias is None else f"{output}_product"
    nodes: list[onnx.NodeProto] = []
    if linear.form == "constant":
        nodes.append(helper.make_node("Constant", [], [name], value=tensor))
    else:
        tensors.append(tensor)
    if linear.form.startswith("gemm"):
        extra = []
        if linear.bias is not None:
            tensors.append(numpy_helper.from_array(linear.bias, f"{linear.name}.bias"))
            extra = [f"{linear.name}.bias"]
        trans = int(linear.form == "gemm_b")
        return [
            *nodes,
            helper.make_node(
                "Gemm", [*inputs, *extra], [output], name=f"n_{linear.name}", transB=trans
            ),
        ]
    if linear.form == "transpose":
        nodes.append(helper.make_node("Transpose", [name], [f"{name}_t"], perm=[1, 0]))
        inputs[1] = f"{name}_t"
    nodes.append(helper.make_node("MatMul", inputs, [product], name=f"n_{linear.name}"))
    if linear.bias is not None:
        tensors.append(numpy_helper.from_array(linear.bias, f"{linear.name}.bias"))
        nodes.append(helper.make_node("Add", [product, f"{linear.name}.bias"], [output]))
    return nodes


def run_ort(
    path: Path, feeds: dict[str, NDArray[Any]], *, optimise: bool
) -> dict[str, NDArray[Any]]:
    """Runs a model on onnxruntime's CPU provider at one end of its optimisation levels."""
    options = ort.SessionOptions()
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = (
        level.ORT_ENABLE_ALL if optimise else level.ORT_DISABLE_ALL
    )
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    outputs: list[Any] = list(session.run(names, feeds))
    return dict(zip(names, outputs, strict=True))


def masked_product(
    x: NDArray[Any], weight: NDArray[Any], keep: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """X (W * keep)^T in float64: the reference that shares no code with the rewrite."""
    masked = np.where(keep, weight.astype(np.float64), 0.0)
    product: NDArray[np.float64] = np.einsum("...k,nk->...n", x.astype(np.float64), masked)
    return product


def graph_text(path: Path) -> str:
    """The printed graph without its initializers' values."""
    proto = onnx.load(path, load_external_data=False)
    sizes = [f"  {t.name} {list(t.dims)}" for t in proto.graph.initializer]
    del proto.graph.initializer[:]
    del proto.metadata_props[:]
    for node in proto.graph.node:
        del node.metadata_props[:]
    text: str = onnx.printer.to_text(proto)
    return text + "initializers:\n" + "\n".join(sizes) + "\n"


def said(caught: pytest.ExceptionInfo[BaseException]) -> str:
    """The text of an error, after a check that it is one line with a subject."""
    text = str(caught.value)
    assert "\n" not in text, text
    assert " | " in text, text
    return text


def geometries() -> st.SearchStrategy[Geometry]:
    """Every kind of geometry, with sizes that leave ragged edges on small weights."""
    height = st.none() | st.integers(1, 20)
    width = st.none() | st.integers(1, 6).map(lambda groups: 4 * groups)
    return st.builds(Geometry, height, width)


def same_mask(one: WeightMask, two: WeightMask) -> None:
    """Asserts that two masks say the same, scores and digests included."""
    assert (one.name, one.grid, one.geometry) == (two.name, two.grid, two.geometry)
    assert dict(one.digests) == dict(two.digests)
    np.testing.assert_array_equal(one.dense, two.dense)
    np.testing.assert_array_equal(one.bits(), two.bits())
    assert (one.scores is None) == (two.scores is None)
    if one.scores is not None and two.scores is not None:
        np.testing.assert_array_equal(one.scores, two.scores)


def band_mask(
    rng: np.random.Generator, name: str, weight: NDArray[Any], dense: list[bool] | None = None
) -> WeightMask:
    """A mask in bands of 8 rows, by turns dense and 2:4, or as given."""
    rows = [i % 2 == 0 for i in range(-(-weight.shape[0] // 8))] if dense is None else dense
    return random_mask(rng, name, weight, "band:8", dense=np.array(rows)[:, None])


def three_linears(
    folder: Path, rng: np.random.Generator, *, external: bool = False
) -> tuple[Path, Masks, dict[str, NDArray[Any]]]:
    """A model of the linears c, a and b, (32, 48) each, with masks in bands."""
    weights = {name: random_weight(rng, 32, 48) for name in "cab"}
    linears = [Linear(name, weight) for name, weight in weights.items()]
    path = linear_model(linears, folder / "model.onnx", external=external)
    masks = masks_of(*(band_mask(rng, f"{n}.weight", w) for n, w in weights.items()))
    return path, masks, weights


def digests_said(compiled: Path) -> set[str]:
    """What the report beside a compiled model says of its weights' digests."""
    report = json.loads(compiled.with_name("report.json").read_text("utf-8"))
    return {weight["digest"] for weight in report["weights"]}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by name."""
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def saved_masks(folder: Path) -> Path:
    """Two masks in 8 x 8 tiles, (16, 32) and (8, 20), beside each other."""
    rng = np.random.default_rng(0)
    masks = [
        random_mask(rng, name, random_weight(rng, *shape), "8x8", dense=dense)
        for name, shape, dense in (
            ("a.weight", (16, 32), np.array([[True, False, True, False]] * 2)),
            ("b.weight", (8, 20), np.array([[False, True, False]])),
        )
    ]
    path = folder / "masks.json"
    save_masks(masks_of(*masks), path)
    return path


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks a tar file as its readers are told to; the folder is made if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["tar", "-xf", archive, "-C", folder], check=True)
