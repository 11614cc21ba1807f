"""Models are read with suspicion and written whole."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from patch_compile.errors import ModelError
from patch_compile.io.onnx_model import FLOAT_BITS, load_model, open_bits
from patch_compile.io.save_model import save_model
from patch_compile.io.slot_writer import Bytes, SlotWriter
from tests.support import FLOATS, Linear, linear_model, random_weight, run_ort, said


def stored(folder: Path, rng: np.random.Generator) -> tuple[Path, NDArray[Any]]:
    """A model over one external weight, (24, 16), and its second weight `b`."""
    weight = random_weight(rng, 24, 16)
    linears = [Linear("a", weight), Linear("b", random_weight(rng, 8, 16))]
    return linear_model(linears, folder / "model.onnx", external=True), weight


def edit(path: Path, change: Callable[[onnx.TensorProto], object]) -> None:
    """Edits the first external tensor of the file."""
    model = onnx.load(path, load_external_data=False)
    change(model.graph.initializer[0])
    path.write_bytes(model.SerializeToString())


def put(tensor: onnx.TensorProto, **entries: object) -> None:
    for entry in tensor.external_data:
        if entry.key in entries:
            entry.value = str(entries.pop(entry.key))
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(path)
    return said(caught)


@pytest.mark.parametrize("name", ["absent.onnx", "folder"])
def test_what_is_no_file_says_so(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    assert refusal(tmp_path / name) == (
        f"model '{tmp_path / name}' | is not a file; give the path of an .onnx file"
    )


@pytest.mark.parametrize("content", [b"", b"hello, this is no model", b"{}" * 90, bytes(512)])
def test_file_that_is_no_onnx_says_so(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert refusal(path).startswith(f"model '{path}' | is not a readable ONNX file: ")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.98])
def test_truncated_graph_says_so(
    tmp_path: Path, rng: np.random.Generator, share: float
) -> None:
    path = linear_model([Linear("a", random_weight(rng, 8, 8))], tmp_path / "model.onnx")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert refusal(path).startswith(f"model '{path}' | is not a readable ONNX file: ")


DAMAGE: list[tuple[dict[str, object], str]] = [
    ({"location": "absent.data"}, "lies in 'absent.data', which cannot be read (No such file"),
    (
        {"location": "../model.onnx.data"},
        "lies in '../model.onnx.data'; expected a file inside",
    ),
    ({"location": "a/../../x"}, "lies in 'a/../../x'; expected a file inside"),
    ({"location": "/etc/passwd"}, "lies in '/etc/passwd'; expected a file inside"),
    ({"offset": 10**9}, f"ends at byte {10**9 + 1536} of 'model.onnx.data', which has 2048"),
    # Said by onnx's own reader where it is new enough, else by ours.
    ({"offset": -4}, "-4"),
    ({"length": 1532}, "has 1532 bytes in 'model.onnx.data'; its shape needs 1536"),
    ({"length": 0}, "has 0 bytes in 'model.onnx.data'; its shape needs 1536"),
    (
        {"length": "many"},
        "is not a readable ONNX file: invalid literal for int() with base 10",
    ),
]


@pytest.mark.parametrize(("entries", "part"), DAMAGE, ids=[part for _, part in DAMAGE])
def test_unsafe_or_damaged_external_data_is_refused(
    tmp_path: Path, rng: np.random.Generator, entries: dict[str, object], part: str
) -> None:
    path, _ = stored(tmp_path, rng)
    edit(path, lambda tensor: put(tensor, **dict(entries)))
    text = refusal(path)
    assert text.startswith(f"model '{path}'")
    assert part in text


def test_missing_data_file_names_the_weight(tmp_path: Path, rng: np.random.Generator) -> None:
    path, _ = stored(tmp_path, rng)
    (tmp_path / "model.onnx.data").unlink()
    assert refusal(path) == (
        f"model '{path}', weight 'a.weight' | lies in 'model.onnx.data', which cannot be read "
        "(No such file or directory); put the data file beside the model"
    )


def test_truncated_data_file_names_the_weight_that_is_cut(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    path, _ = stored(tmp_path, rng)
    os.truncate(tmp_path / "model.onnx.data", 2044)
    text = refusal(path)
    assert "weight 'b.weight' | ends at byte 2048 of 'model.onnx.data', which has 2044" in text


def test_data_behind_a_link_out_of_the_folder_is_refused(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    (tmp_path / "hub").mkdir()
    path, _ = stored(tmp_path / "hub", rng)
    data = path.parent / "model.onnx.data"
    data.rename(tmp_path / "blob")
    data.symlink_to(tmp_path / "blob")
    text = refusal(path)
    assert "lies in 'model.onnx.data', a link that leads out of the model's folder" in text
    assert "copy the file itself there" in text


def test_data_behind_a_link_inside_the_folder_is_read(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    path, weight = stored(tmp_path, rng)
    data = tmp_path / "model.onnx.data"
    data.rename(tmp_path / "blob")
    data.symlink_to(tmp_path / "blob")
    tensor = load_model(path).graph.initializers["a.weight"].const_value
    assert tensor is not None
    np.testing.assert_array_equal(open_bits(tensor).view(np.float32), weight.T)


def test_hard_linked_data_is_refused_before_it_is_refused_at_the_end(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    """onnx_ir takes no file with a second hard link, but says so only when it writes."""
    path, _ = stored(tmp_path, rng)
    os.link(tmp_path / "model.onnx.data", tmp_path / "second")
    assert "lies in 'model.onnx.data', which has 2 hard links; copy the file" in refusal(path)


def constant_model(path: Path, location: str) -> Path:
    """A Constant node whose tensor lies in an external file."""
    value = helper.make_tensor("w", TensorProto.FLOAT, [4, 4], bytes(64), raw=True)
    value.ClearField("raw_data")
    value.data_location = TensorProto.EXTERNAL
    put(value, location=location, offset=0, length=64)
    nodes = [
        helper.make_node("Constant", [], ["w"], value=value),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4]) for n in "xy")
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y]),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "absent"])
def test_external_data_of_constant_nodes_is_checked_too(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret").write_bytes(bytes(64))
    (tmp_path / "m").mkdir()
    path = constant_model(tmp_path / "m" / "model.onnx", location)
    assert f"weight 'w' | lies in '{location}'" in refusal(path)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("external", [False, True])
def test_bits_are_the_weight_s_own(
    tmp_path: Path, rng: np.random.Generator, dtype: str, external: bool
) -> None:
    weight = random_weight(rng, 8, 12, dtype)
    weight[0, :3] = [np.nan, -0.0, np.inf]
    path = linear_model([Linear("a", weight)], tmp_path / "model.onnx", external=external)
    tensor = load_model(path).graph.initializers["a.weight"].const_value
    assert tensor is not None
    bits = open_bits(tensor)
    assert bits.dtype == FLOAT_BITS[tensor.dtype]
    assert bits.shape == (12, 8)
    np.testing.assert_array_equal(bits, np.ascontiguousarray(weight.T).view(bits.dtype))


def test_bits_at_an_odd_byte_of_the_file_are_read(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    path, weight = stored(tmp_path, rng)
    data = tmp_path / "model.onnx.data"
    data.write_bytes(b"\x01" + data.read_bytes())
    edit(path, lambda tensor: put(tensor, offset=1))
    tensor = load_model(path).graph.initializers["a.weight"].const_value
    assert tensor is not None
    np.testing.assert_array_equal(open_bits(tensor).view(np.float32), weight.T)


def test_bits_do_not_keep_the_file_mapped(tmp_path: Path, rng: np.random.Generator) -> None:
    path, _ = stored(tmp_path, rng)
    model = load_model(path)
    tensor = model.graph.initializers["a.weight"].const_value
    assert isinstance(tensor, ir.ExternalTensor)
    assert open_bits(tensor).sum() > 0
    assert tensor.raw is None


@pytest.mark.parametrize("dtype", FLOATS)
def test_saved_model_reads_back_bit_for_bit(
    tmp_path: Path, rng: np.random.Generator, dtype: str
) -> None:
    weight = random_weight(rng, 64, 32, dtype)
    weight.ravel()[:2] = [np.nan, -0.0]
    path = linear_model([Linear("a", weight)], tmp_path / "model.onnx")
    save_model(load_model(path), tmp_path / "out.onnx")
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == ["model.onnx", "out.onnx", "out.onnx.data"]
    read = onnx.load(tmp_path / "out.onnx").graph.initializer[0]
    assert read.raw_data == weight.T.tobytes()
    assert onnx.load(path).graph.node == onnx.load(tmp_path / "out.onnx").graph.node


def test_saving_leaves_the_model_in_memory_as_it_was(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    path, _ = stored(tmp_path, rng)
    model = load_model(path)
    before = {name: v.const_value for name, v in model.graph.initializers.items()}
    save_model(model, tmp_path / "out.onnx")
    assert {name: v.const_value for name, v in model.graph.initializers.items()} == before
    assert (tmp_path / "out.onnx.data").stat().st_size >= 2048


def test_progress_counts_every_byte_once_and_ends_at_all(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    path, _ = stored(tmp_path, rng)
    seen: list[tuple[int, int, str]] = []
    save_model(load_model(path), tmp_path / "o.onnx", lambda *step: seen.append(step))
    assert [step[1] for step in seen] == [2048] * len(seen)
    assert [step[0] for step in seen] == sorted({step[0] for step in seen})
    assert seen[-1][0] == 2048
    assert all(isinstance(step[1], Bytes) for step in seen)


def test_full_disk_is_one_line(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = stored(tmp_path, rng)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SlotWriter, "write", full)
    with pytest.raises(ModelError) as caught:
        save_model(load_model(path), tmp_path / "out.onnx")
    assert said(caught) == (
        f"output '{tmp_path}' | cannot be written: No space left on device; free some space "
        "(0.0 GB are needed) or choose another folder"
    )


def test_model_made_of_functions_and_branches_is_checked_in_all_its_graphs(
    tmp_path: Path,
) -> None:
    """The external tensor of an If body is found."""
    weight = numpy_helper.from_array(np.ones((4, 4), np.float32), "inner")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    put(weight, location="absent", offset=0, length=64)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])
    body = helper.make_graph(
        [helper.make_node("MatMul", ["x", "inner"], ["y"])], "body", [], [y], [weight]
    )
    other = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "other", [], [y])
    node = helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=other)
    c = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])
    model = helper.make_model(
        helper.make_graph([node], "g", [c, x], [y]),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    assert "weight 'inner' | lies in 'absent', which cannot be read" in refusal(path)


def test_models_of_these_tests_run(tmp_path: Path, rng: np.random.Generator) -> None:
    path, weight = stored(tmp_path, rng)
    x = rng.standard_normal((1, 2, 16)).astype(np.float32)
    found = run_ort(path, {"x": x}, optimise=False)["y_a"]
    # float32 sums of 16 products of numbers below 4.
    np.testing.assert_allclose(found, x @ weight.T, rtol=0, atol=1e-4)
