"""Weights as a model holds them, read in strips.

N: out features. K: in features. A MatMul's weight is stored (K, N), a Gemm's with transB
(N, K).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from patch_compile.io.onnx_model import open_bits, open_rows
from patch_compile.tiles.inspect import Rows

__all__ = ["Key", "RowWatch", "StoredWeight", "in_order", "rows_in_a_strip"]

# Strips of about this many bytes stay in the second-level cache with what is made of them.
_STRIP_BYTES = 2**21

# A weight stored (N, K) is read whole, for each strip along K needs a little of every row;
# one larger than this is mapped.
_LOADED_BYTES = 2**27

Key = tuple[int, bool]


class RowWatch(Protocol):
    """Sees the rows of a stored weight in order, each once."""

    def update(self, rows: NDArray[Any], /) -> None:
        """Takes the next rows, unsigned integers."""
        ...

    def finish(self) -> None:
        """Hears that there are no more."""
        ...


@dataclass(frozen=True)
class _Watched:
    """Rows that are watched while they are read; slices must follow each other."""

    rows: Rows
    watch: RowWatch

    @property
    def shape(self) -> tuple[int, ...]:
        return self.rows.shape

    def __getitem__(self, rows: slice, /) -> NDArray[Any]:
        strip = self.rows[rows]
        self.watch.update(strip)
        return strip


@dataclass(frozen=True)
class StoredWeight:
    """A weight as the model holds it.

    Attributes:
        tensor: the original, unpruned tensor.
        transposed: it is stored (K, N) rather than (N, K).
    """

    tensor: ir.TensorProtocol
    transposed: bool

    @property
    def key(self) -> Key:
        """Tells whether two weights are one."""
        return id(self.tensor), self.transposed

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        first, second = (int(d) for d in self.tensor.shape.numpy())
        return (second, first) if self.transposed else (first, second)

    def rows(self, watch: RowWatch | None = None) -> Rows:
        """Returns the elements as unsigned integers, (K, N), read as rows are sliced.

        Args:
            watch: sees the weight's rows in the order they are stored in, if what is
                returned is sliced from its start to its end.
        """
        stored = open_rows(self.tensor)
        if self.transposed:
            return stored if watch is None else _Watched(stored, watch)
        if self.tensor.nbytes <= _LOADED_BYTES:
            return _loaded(stored, watch).T
        for _ in () if watch is None else in_order(stored, watch):
            pass
        return self.bits()

    def bits(self) -> NDArray[Any]:
        """Returns the elements as unsigned integers, (K, N), without a copy."""
        stored = open_bits(self.tensor)
        return stored if self.transposed else stored.T


def rows_in_a_strip(width: int, itemsize: int, multiple: int = 4) -> int:
    """How many rows of `width` elements make a strip: a multiple, and not 0."""
    rows = _STRIP_BYTES // max(1, width * itemsize)
    return max(multiple, rows // multiple * multiple)


def in_order(rows: Rows, watch: RowWatch | None, multiple: int = 4) -> Iterator[NDArray[Any]]:
    """Yields all rows in strips of a multiple; `watch` sees each before it is yielded."""
    watched = rows if watch is None else _Watched(rows, watch)
    height, width = rows.shape
    step = rows_in_a_strip(width, rows[0:0].itemsize, multiple)
    for start in range(0, height, step):
        yield watched[start : min(start + step, height)]


def _loaded(stored: Rows, watch: RowWatch | None) -> NDArray[Any]:
    if isinstance(stored, np.ndarray) and watch is None:
        return stored
    whole = np.empty((stored.shape[0], stored.shape[1]), stored[0:0].dtype)
    at = 0
    for strip in in_order(stored, watch):
        whole[at : at + strip.shape[0]] = strip
        at += strip.shape[0]
    return whole
