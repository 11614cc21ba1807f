"""A cast weight has the bytes that numpy gives, whichever way it is read."""

import io
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from patch_compile.errors import ModelError
from patch_compile.io import cast_tensor
from patch_compile.io.cast_tensor import CastTensor
from patch_compile.io.onnx_model import open_rows
from tests.support import said

TYPES = [
    (ir.DataType.FLOAT16, np.dtype(np.float16)),
    (ir.DataType.BFLOAT16, np.dtype(ml_dtypes.bfloat16)),
]


def _external(values: NDArray[np.float32], folder: Path) -> ir.ExternalTensor:
    # An offset, so that a reader that forgets it is found out.
    (folder / "w.data").write_bytes(b"\0" * 64 + values.tobytes())
    return ir.ExternalTensor(
        "w.data",
        64,
        values.nbytes,
        ir.DataType.FLOAT,
        shape=ir.Shape(values.shape),
        name="w",
        base_dir=folder,
    )


def _written(tensor: CastTensor) -> bytes:
    file = io.BytesIO()
    tensor.tofile(file)
    return file.getvalue()


@pytest.mark.parametrize("shape", [(7,), (6, 10), (2, 3, 5), ()])
@pytest.mark.parametrize(("kind", "dtype"), TYPES)
def test_every_way_to_read_gives_numpys_bytes(
    tmp_path: Path,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    kind: ir.DataType,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
) -> None:
    # Blocks of a few elements: several of them in each weight.
    monkeypatch.setattr(cast_tensor, "_BLOCK", 11)
    values = rng.standard_normal(shape).astype(np.float32)
    values = np.asarray(values).reshape(shape)
    expected = values.astype(dtype).tobytes()
    sources: list[ir.TensorProtocol] = [ir.Tensor(values, name="w")]
    sources += [_external(values, tmp_path)] if shape else []
    for source in sources:
        tensor = CastTensor(source, kind)
        assert (tensor.name, tensor.dtype, tuple(tensor.shape)) == ("w", kind, shape)
        assert _written(tensor) == tensor.tobytes() == tensor.numpy().tobytes() == expected


@given(
    hnp.arrays(
        np.float32,
        (4, 8),
        elements=st.floats(-60000, 60000, width=32) | st.sampled_from([0.0, -0.0, 1e-9]),
    )
)
def test_zeros_stay_zeros(values: NDArray[np.float32]) -> None:
    for kind, dtype in TYPES:
        rows = open_rows(CastTensor(ir.Tensor(values, name="w"), kind))
        cast = rows[1:3].view(dtype)
        assert (cast[values[1:3] == 0] == 0).all()
        np.testing.assert_array_equal(cast, values[1:3].astype(dtype))


def test_a_weight_that_does_not_fit_is_refused() -> None:
    source = ir.Tensor(np.array([[1.0, -70000.0]], np.float32), name="w")
    with pytest.raises(ModelError, match=r"weight 'w' \| holds 70000.*bf16") as caught:
        _written(CastTensor(source, ir.DataType.FLOAT16))
    said(caught)
    assert _written(CastTensor(source, ir.DataType.BFLOAT16))


def test_infinities_stay_what_they_are() -> None:
    source = ir.Tensor(np.array([[1.0, -np.inf, np.nan]], np.float32), name="w")
    cast = CastTensor(source, ir.DataType.FLOAT16).numpy()
    np.testing.assert_array_equal(cast, source.numpy())
