"""A weight in a smaller float type, cast in blocks while it is read."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from patch_compile.errors import ModelError
from patch_compile.io.onnx_model import FLOAT_BITS, DerivedTensor, FileRows, open_bits
from patch_compile.tiles.inspect import Rows

__all__ = ["CastRows", "CastTensor"]

# Blocks of about this many elements stay in the second-level cache.
_BLOCK = 2**19


@dataclass(frozen=True)
class CastRows:
    """Rows of a float32 array, cast when they are sliced.

    Rounding is to nearest, ties to even; zeros stay zeros, and small numbers may become some.

    Attributes:
        name: of the tensor, for errors.
        source: float32 as unsigned integers.
        dtype: to cast to.
    """

    name: str
    source: Rows
    dtype: ir.DataType

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, columns)."""
        return self.source.shape

    def __getitem__(self, rows: slice, /) -> NDArray[Any]:
        """Returns consecutive rows as unsigned integers of the smaller type.

        Raises:
            ModelError: if a finite number is too large for it.
        """
        values = self.source[rows].view(np.float32)
        with np.errstate(over="ignore"):
            cast = values.astype(self.dtype.numpy())
        if not np.isfinite(cast).all() and not np.array_equal(
            np.isfinite(cast), np.isfinite(values)
        ):
            largest = float(np.abs(values[np.isfinite(values)]).max())
            raise ModelError(
                f"weight '{self.name}' | holds {largest:g}, more than {self.dtype.name} can; "
                "choose --dtype bf16, or keep the model's own"
            )
        return cast.view(FLOAT_BITS[self.dtype])


class CastTensor(DerivedTensor):
    """A float32 tensor in float16 or bfloat16. It holds no data of its own."""

    __slots__ = ("source",)

    def __init__(self, source: ir.TensorProtocol, dtype: ir.DataType) -> None:
        """Describes the cast of `source`, which keeps its name and shape."""
        shape = ir.Shape([int(d) for d in source.shape.numpy()])
        super().__init__(self._whole, dtype, shape, name=source.name)
        self.source = source

    def rows(self) -> CastRows:
        """Returns its rows, (first axis, all others), as unsigned integers."""
        first, *others = (*(int(d) for d in self.shape.numpy()), 1)
        shape = (first, math.prod(others))
        rows: Rows
        if isinstance(self.source, ir.ExternalTensor):
            dtype = FLOAT_BITS[self.source.dtype]
            rows = FileRows(self.source.path, dtype, self.source.offset or 0, shape)
        else:
            rows = open_bits(self.source).reshape(shape)
        return CastRows(self.name or "?", rows, self.dtype)

    def _blocks(self) -> Iterator[NDArray[Any]]:
        rows = self.rows()
        step = max(1, _BLOCK // max(1, rows.shape[1]))
        for start in range(0, rows.shape[0], step):
            yield rows[start : start + step]

    def _whole(self) -> ir.TensorProtocol:
        rows = self.rows()
        shape = tuple(int(d) for d in self.shape.numpy())
        values = rows[0 : rows.shape[0]].view(self.dtype.numpy()).reshape(shape)
        return ir.Tensor(values, name=self.name)

    def tofile(self, file: BinaryIO) -> None:
        """Writes the little-endian bytes block by block."""
        for block in self._blocks():
            file.write(np.ascontiguousarray(block).data)
