"""Every tensor has a place of its own, and files have the sizes that were asked for."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patch_compile.io.layout import drop_stale, is_data_of, lay_out


def tensors(sizes: list[int]) -> list[ir.TensorProtocol]:
    return [ir.Tensor(np.zeros(size, np.uint8), name=str(i)) for i, size in enumerate(sizes)]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=12), st.none() | st.integers(1, 80))
def test_tensors_are_packed_densely_in_order(sizes: list[int], limit: int | None) -> None:
    slots = lay_out(tensors(sizes), "m.onnx.data", limit)
    assert [slot.tensor.nbytes for slot in slots] == sizes
    ends: dict[str, int] = {}
    for slot in slots:
        assert slot.offset == ends.get(slot.file, 0)
        ends[slot.file] = slot.end
    assert list(ends) == sorted(ends)
    if limit is None:
        assert list(ends) == ["m.onnx.data"]
        return
    for file, size in ends.items():
        assert size <= limit or sum(slot.file == file for slot in slots) == 1
    # No file could have taken the first tensor of the next.
    firsts = [slot for slot in slots if slot.offset == 0][1:]
    for size, first in zip(ends.values(), firsts, strict=False):
        assert size + first.tensor.nbytes > limit


def test_files_are_named_as_the_hub_names_shards() -> None:
    names = [slot.file for slot in lay_out(tensors([5, 5, 5]), "m.onnx.data", 10)]
    assert names == ["m.onnx-00001-of-00002.data"] * 2 + ["m.onnx-00002-of-00002.data"]


@pytest.mark.parametrize("limit", [None, 5])
def test_names_are_told_from_those_of_other_models(limit: int | None) -> None:
    for slot in lay_out(tensors([5, 5]), "m.onnx.data", limit):
        assert is_data_of("m.onnx", slot.file)
    for other in ("other.onnx.data", "mxonnx.data", "m.onnx", "m.onnx.data.old"):
        assert not is_data_of("m.onnx", other)


def test_what_an_earlier_run_left_goes(tmp_path: Path) -> None:
    names = ["m.onnx", "m.onnx.data", "m.onnx-00001-of-00002.data", "n.onnx.data"]
    for name in names:
        (tmp_path / name).touch()
    drop_stale(tmp_path, "m.onnx", {"m.onnx", "m.onnx-00001-of-00002.data"})
    left = {file.name for file in tmp_path.iterdir()}
    assert left == set(names) - {"m.onnx.data"}


def test_no_tensor_needs_no_file() -> None:
    assert lay_out([], "m.onnx.data", 5) == ()
