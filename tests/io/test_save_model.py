"""A saved model holds every tensor of the model in memory, wherever it lay."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from patch_compile.errors import ModelError
from patch_compile.io.onnx_model import load_model
from patch_compile.io.save_model import save_model
from tests.support import Linear, linear_model, random_weight, run_ort


@pytest.mark.parametrize("shard_bytes", [None, 1500, 4000])
def test_shards_read_back_bit_for_bit(
    tmp_path: Path, rng: np.random.Generator, shard_bytes: int | None
) -> None:
    arrays = {
        name: random_weight(rng, n, 16) for name, n in zip("abc", (24, 8, 50), strict=True)
    }
    path = linear_model([Linear(n, w) for n, w in arrays.items()], tmp_path / "m.onnx")
    (tmp_path / "out").mkdir()
    save_model(load_model(path), tmp_path / "out" / "o.onnx", shard_bytes=shard_bytes)
    files = sorted(file.name for file in (tmp_path / "out").iterdir())
    count = {None: 1, 1500: 3, 4000: 2}[shard_bytes]
    assert len(files) == count + 1
    read = onnx.load(tmp_path / "out" / "o.onnx")
    for tensor in read.graph.initializer:
        wanted = arrays[tensor.name.removesuffix(".weight")].T
        np.testing.assert_array_equal(numpy_helper.to_array(tensor), wanted)
    x = rng.standard_normal((1, 2, 16)).astype(np.float32)
    before = run_ort(path, {"x": x}, optimise=False)
    after = run_ort(tmp_path / "out" / "o.onnx", {"x": x}, optimise=False)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_attribute_of_no_type_is_the_model_s_fault(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    path = linear_model([Linear("a", random_weight(rng, 8, 16))], tmp_path / "m.onnx")
    model = onnx.load(path)
    model.graph.node[0].attribute.add()
    onnx.save(model, path)
    with pytest.raises(ModelError, match="cannot store: Unsupported attribute type"):
        save_model(load_model(path), tmp_path / "o.onnx")


def constant_model(folder: Path, weight: np.ndarray) -> Path:
    """A MatMul over a Constant node whose tensor lies in a file."""
    (folder / "w.bin").write_bytes(bytes(8) + weight.tobytes())
    value = helper.make_tensor(
        "w", TensorProto.FLOAT, weight.shape, weight.tobytes(), raw=True
    )
    value.ClearField("raw_data")
    value.data_location = TensorProto.EXTERNAL
    for key, entry in (("location", "w.bin"), ("offset", "8"), ("length", str(weight.nbytes))):
        value.external_data.add(key=key, value=entry)
    nodes = [
        helper.make_node("Constant", [], ["w"], value=value),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size])
        for name, size in zip("xy", weight.shape, strict=True)
    )
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y]),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return folder / "m.onnx"


@pytest.mark.parametrize("size", [4, 40])
def test_tensor_of_a_constant_node_moves_with_the_model(
    tmp_path: Path, rng: np.random.Generator, size: int
) -> None:
    """The file that it lay in is not beside the new model."""
    weight = rng.standard_normal((size, 4)).astype(np.float32)
    model = load_model(constant_model(tmp_path, weight))
    (tmp_path / "out").mkdir()
    save_model(model, tmp_path / "out" / "o.onnx")
    (tmp_path / "w.bin").unlink()
    x = rng.standard_normal((1, size)).astype(np.float32)
    found = run_ort(tmp_path / "out" / "o.onnx", {"x": x}, optimise=False)["y"]
    np.testing.assert_allclose(found, x @ weight, rtol=1e-5)
    (node,) = (node for node in model.graph if node.op_type == "Constant")
    assert isinstance(node.attributes["value"].value, ir.ExternalTensor)
    assert node.attributes["value"].value.location == "w.bin"


def test_tensor_of_two_initializers_is_written_once(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    arrays = {name: random_weight(rng, 24, 16) for name in "ab"}
    path = linear_model([Linear(n, w) for n, w in arrays.items()], tmp_path / "m.onnx")
    model = load_model(path)
    values = model.graph.initializers
    values["b.weight"].const_value = values["a.weight"].const_value
    save_model(model, tmp_path / "o.onnx")
    assert (tmp_path / "o.onnx.data").stat().st_size == arrays["a"].nbytes
    read = onnx.load(tmp_path / "o.onnx")
    assert sorted(tensor.name for tensor in read.graph.initializer) == ["a.weight", "b.weight"]
    for tensor in read.graph.initializer:
        np.testing.assert_array_equal(numpy_helper.to_array(tensor), arrays["a"].T)
