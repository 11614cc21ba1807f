"""What is written array by array is a safetensors file to the library."""

import hashlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from patch_compile.errors import InternalError
from patch_compile.io.safetensors_file import LazyArray, SafetensorsFile, write_safetensors

DTYPES = (np.uint8, np.float32, np.int32)


@given(
    st.lists(st.tuples(st.sampled_from(DTYPES), st.integers(1, 9), st.integers(1, 9))),
    st.text(st.characters(codec="utf-8"), max_size=5),
)
def test_the_library_reads_every_array_back(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[tuple[type, int, int]], prefix: str
) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        f"{prefix}{i}": rng.integers(0, 255, shape).astype(dtype)
        for i, (dtype, *shape) in enumerate(kinds)
    }
    path = tmp_path_factory.mktemp("st") / "m.safetensors"
    made = [
        LazyArray(name, a.dtype, a.shape, partial(np.asarray, a)) for name, a in arrays.items()
    ]
    digest = write_safetensors(path, made)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    found = load_file(path)
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    ours = SafetensorsFile.open(path)
    for name, array in arrays.items():
        np.testing.assert_array_equal(ours.lazy(name, array.dtype, array.shape)(), array)
        assert ours.start % 8 == 0
        assert ours.names[name]["data_offsets"][0] % array.itemsize == 0


def test_one_array_at_a_time_is_in_memory(tmp_path: Path) -> None:
    alive: list[int] = []
    peak = 0

    class Counted(np.ndarray):
        def __del__(self) -> None:
            alive.pop()

    def make() -> np.ndarray:
        nonlocal peak
        alive.append(1)
        peak = max(peak, len(alive))
        return np.zeros((4, 4), np.uint8).view(Counted)

    arrays = [LazyArray(str(i), np.uint8, (4, 4), make) for i in range(5)]
    write_safetensors(tmp_path / "m.safetensors", arrays)
    # The last one lives until the next was made in its place.
    assert peak <= 2


def test_array_of_another_shape_than_promised_is_a_bug(tmp_path: Path) -> None:
    array = LazyArray("a", np.uint8, (2, 2), lambda: np.zeros((2, 3), np.uint8))
    with pytest.raises(InternalError, match=r"is \(2, 3\); it was to be \(2, 2\)"):
        write_safetensors(tmp_path / "m.safetensors", [array])
