"""The reference really runs masked weights, however the model holds them.

Every case would give the dense product if ONNX Runtime ignored what it was told.
"""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from patch_compile.errors import MaskError, ModelError
from patch_compile.runtimes.onnxruntime import Session, open_session, run_session
from patch_compile.runtimes.reference import MaskedTensor, open_reference
from tests.support import FLOATS, Linear, linear_model, masked_product, random_weight

N, K = 12, 8
# float32 accumulation of 8 products; float16 rounds x, sums and result to 11 bits.
TOLERANCE = {"float32": 1e-5, "float16": 3e-2, "bfloat16": 1e-5}
PLACES = ("external", "inline", "constant")

Weights = dict[str, NDArray[Any]]


def _model(path: Path, weight: NDArray[Any], dtype: str, place: str, transposed: bool) -> None:
    """Saves y = x W^T with float32 x and y, W stored (K, N) if `transposed`.

    ONNX Runtime's CPU provider multiplies no bfloat16, so that weight is cast to float32.
    """
    code = FLOATS[dtype][1]
    inside = TensorProto.FLOAT if dtype == "bfloat16" else code
    stored = np.ascontiguousarray(weight.T if transposed else weight)
    tensor = numpy_helper.from_array(stored, "w")
    nodes = [helper.make_node("Constant", [], ["w"], value=tensor)]
    nodes = nodes if place == "constant" else []
    turn = "Identity" if transposed else "Transpose"
    nodes += [
        helper.make_node("Cast", ["w"], ["w_cast"], to=inside),
        helper.make_node(turn, ["w_cast"], ["w_turned"]),
        helper.make_node("Cast", ["x"], ["x_cast"], to=inside),
        helper.make_node("MatMul", ["x_cast", "w_turned"], ["product"]),
        helper.make_node("Cast", ["product"], ["y"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", K])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", N])],
        [] if place == "constant" else [tensor],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    onnx.checker.check_model(model)
    onnx.save(
        model, path, save_as_external_data=place == "external", location="w", size_threshold=0
    )


def _keeping(keep: NDArray[np.bool_]) -> Callable[[], NDArray[np.bool_]]:
    return lambda: keep


def _half(rng: np.random.Generator) -> NDArray[np.bool_]:
    return rng.permuted(np.tile([True, True, False, False], (N, K // 4)), axis=1)


@pytest.mark.parametrize("optimise", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", list(FLOATS))
def test_masked_weights_are_the_ones_that_run(
    tmp_path: Path,
    rng: np.random.Generator,
    dtype: str,
    place: str,
    transposed: bool,
    optimise: bool,
) -> None:
    path = tmp_path / "m.onnx"
    weight, keep = random_weight(rng, N, K, dtype), _half(rng)
    _model(path, weight, dtype, place, transposed)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    masked = [MaskedTensor("w", _keeping(keep), transposed)]
    session = open_reference(path, masked, optimise=optimise)
    gc.collect()
    x = rng.standard_normal((5, K)).astype(np.float32)
    got = run_session(session, {"x": x})["y"]
    expected = masked_product(x, weight, keep)
    np.testing.assert_allclose(got, expected, atol=TOLERANCE[dtype], rtol=0)
    dense = run_session(open_session(path, optimise=optimise), {"x": x})["y"]
    assert np.abs(dense - expected).max() > 0.5
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("optimise", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_fused_products_are_masked_too(
    tmp_path: Path, rng: np.random.Generator, dtype: str, optimise: bool
) -> None:
    # MatMul + Add becomes Gemm, and float16 weights are cast once when the session starts:
    # rewrites that make new weights out of the ones replaced.
    weight, bias = random_weight(rng, N, K, dtype), random_weight(rng, 1, N, dtype)[0]
    code = FLOATS[dtype][1]
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["product"]),
            helper.make_node("Add", ["product", "b"], ["y"]),
        ],
        "linear",
        [helper.make_tensor_value_info("x", code, ["batch", K])],
        [helper.make_tensor_value_info("y", code, ["batch", N])],
        [
            numpy_helper.from_array(np.ascontiguousarray(weight.T), "w"),
            numpy_helper.from_array(bias, "b"),
        ],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    path = tmp_path / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, location="w", size_threshold=0)
    keep = _half(rng)
    masked = [MaskedTensor("w", _keeping(keep), True)]
    x = rng.standard_normal((5, K)).astype(dtype)
    got = run_session(open_reference(path, masked, optimise=optimise), {"x": x})["y"]
    expected = masked_product(x, weight, keep) + bias.astype(np.float64)
    np.testing.assert_allclose(got, expected, atol=TOLERANCE[dtype], rtol=0)


def test_pruned_infinities_and_nans_leave_no_trace(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    weight, keep = random_weight(rng, N, K), _half(rng)
    weight[~keep] = np.nan
    _model(tmp_path / "m.onnx", weight, "float32", "external", True)
    session = open_reference(tmp_path / "m.onnx", [MaskedTensor("w", _keeping(keep), True)])
    got = run_session(session, {"x": np.ones((1, K), np.float32)})["y"]
    assert np.isfinite(got).all()


def test_no_masks_give_the_original(tmp_path: Path, rng: np.random.Generator) -> None:
    _model(tmp_path / "m.onnx", random_weight(rng, N, K), "float32", "external", True)
    x = {"x": rng.standard_normal((5, K)).astype(np.float32)}
    got = run_session(open_reference(tmp_path / "m.onnx", []), x)["y"]
    expected = run_session(open_session(tmp_path / "m.onnx"), x)["y"]
    np.testing.assert_array_equal(got, expected)


def test_model_is_found_from_any_folder(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = random_weight(rng, N, K)
    (tmp_path / "there").mkdir()
    (tmp_path / "here").mkdir()
    _model(tmp_path / "there/m.onnx", weight, "float32", "external", True)
    monkeypatch.chdir(tmp_path / "here")
    session = open_reference(Path("../there/m.onnx"), [])
    got = run_session(session, {"x": np.ones((1, K), np.float32)})["y"]
    np.testing.assert_allclose(got[0], weight.sum(axis=1), atol=1e-5, rtol=0)


def _check_products(
    session: Session, weights: Weights, keep: Weights, x: NDArray[np.float32]
) -> None:
    """Compares every output; weights without a mask are expected whole."""
    for output, got in run_session(session, {"x": x}).items():
        name = output.removeprefix("y_")
        kept = keep.get(name, np.ones((N, K), np.bool_))
        expected = masked_product(x, weights[name], kept)
        np.testing.assert_allclose(got, expected, atol=1e-5, rtol=0)


def test_linked_files_of_a_model_cache_are_followed(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    weights = {name: random_weight(rng, N, K) for name in ("pruned", "whole")}
    for folder in ("snapshot", "blobs"):
        (tmp_path / folder).mkdir()
    path = tmp_path / "snapshot" / "m.onnx"
    linear_model([Linear(n, w) for n, w in weights.items()], path, external=True)
    for file in (path, path.with_name("m.onnx.data")):
        file.symlink_to(file.rename(tmp_path / "blobs" / f"digest_of_{file.name}"))
    keep = {"pruned": _half(rng)}
    masked = [MaskedTensor("pruned.weight", _keeping(keep["pruned"]), True)]
    x = rng.standard_normal((2, 3, K)).astype(np.float32)
    _check_products(open_reference(path, masked), weights, keep, x)


@pytest.mark.parametrize("location", ["../w", "/w"])
def test_data_outside_the_folder_is_refused(
    tmp_path: Path, rng: np.random.Generator, location: str
) -> None:
    path = tmp_path / "m.onnx"
    _model(path, random_weight(rng, N, K), "float32", "external", True)
    proto = onnx.load(path, load_external_data=False)
    proto.graph.initializer[0].external_data[0].value = location
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match=r"weight 'w' \| lies in .*inside the model's folder"):
        open_reference(path, [MaskedTensor("w", _keeping(_half(rng)), True)])


@pytest.mark.parametrize("optimise", [False, True])
def test_inline_and_external_weights_are_masked_together(
    tmp_path: Path, rng: np.random.Generator, optimise: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = {name: random_weight(rng, N, K) for name in ("inside", "outside", "whole")}
    path = tmp_path / "m.onnx"
    linear_model([Linear(n, w) for n, w in weights.items()], path, external=True)
    proto = onnx.load(path, load_external_data=False)
    inside = numpy_helper.from_array(
        np.ascontiguousarray(weights["inside"].T), "inside.weight"
    )
    assert proto.graph.initializer[0].name == inside.name
    proto.graph.initializer[0].CopyFrom(inside)
    path.write_bytes(proto.SerializeToString())
    keep = {name: _half(rng) for name in ("inside", "outside")}
    masked = [MaskedTensor(f"{n}.weight", _keeping(k), True) for n, k in keep.items()]
    # The data of the third weight is found by the model's folder, not the working folder.
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    session = open_reference(Path("../m.onnx"), masked, optimise=optimise)
    x = rng.standard_normal((2, 3, K)).astype(np.float32)
    _check_products(session, weights, keep, x)


def test_progress_counts_the_tensors(tmp_path: Path, rng: np.random.Generator) -> None:
    _model(tmp_path / "m.onnx", random_weight(rng, N, K), "float32", "inline", True)
    calls: list[tuple[int, int, str]] = []
    masked = [MaskedTensor("w", _keeping(_half(rng)), True)]
    open_reference(tmp_path / "m.onnx", masked, progress=lambda *state: calls.append(state))
    assert calls == [(1, 1, "masking, w")]


def test_mask_of_another_shape_is_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    _model(tmp_path / "m.onnx", random_weight(rng, N, K), "float32", "external", True)
    masked = [MaskedTensor("w", _keeping(_half(rng)), False)]
    with pytest.raises(MaskError, match=r"weight 'w' \| is stored as \(8, 12\), .*\(12, 8\)"):
        open_reference(tmp_path / "m.onnx", masked)


def test_two_masks_of_a_weight_are_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    _model(tmp_path / "m.onnx", random_weight(rng, N, K), "float32", "external", True)
    masked = [MaskedTensor("w", _keeping(_half(rng)), True)] * 2
    with pytest.raises(MaskError, match=r"weight 'w' \| has several masks"):
        open_reference(tmp_path / "m.onnx", masked)


@pytest.mark.parametrize("place", ["external", "constant"])
def test_unknown_tensor_is_refused(
    tmp_path: Path, rng: np.random.Generator, place: str
) -> None:
    _model(tmp_path / "m.onnx", random_weight(rng, N, K), "float32", place, True)
    with pytest.raises(ModelError, match=r"weight 'v' \| is no initializer or Constant"):
        open_reference(tmp_path / "m.onnx", [MaskedTensor("v", _keeping(_half(rng)), True)])


def test_integer_tensor_is_refused(tmp_path: Path) -> None:
    tensor = numpy_helper.from_array(np.ones((4, 4), np.int64), "w")
    graph = helper.make_graph([], "g", [], [], [tensor])
    onnx.save(helper.make_model(graph), tmp_path / "m.onnx")
    masked = [MaskedTensor("w", _keeping(np.ones((4, 4), np.bool_)), True)]
    with pytest.raises(ModelError, match=r"weight 'w' \| is INT64; expected FLOAT"):
        open_reference(tmp_path / "m.onnx", masked)


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_damaged_data_file_is_refused(
    tmp_path: Path, rng: np.random.Generator, damage: str
) -> None:
    _model(tmp_path / "m.onnx", random_weight(rng, N, K), "float32", "external", True)
    data = (tmp_path / "w").read_bytes()
    (tmp_path / "w").unlink()
    if damage == "short":
        (tmp_path / "w").write_bytes(data[:-4])
    with pytest.raises(ModelError, match=r"weight 'w' \| cannot be read") as caught:
        open_reference(tmp_path / "m.onnx", [MaskedTensor("w", _keeping(_half(rng)), True)])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, b"\x01garbage"])
def test_no_model_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ModelError, match=r"m\.onnx' \| "):
        open_reference(tmp_path / "m.onnx", [])
