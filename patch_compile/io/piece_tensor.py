"""One piece of a masked weight, made in strips while it is written.

N: out features. K: in features. A MatMul's weight is stored (K, N), a Gemm's with transB
(N, K).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from patch_compile.errors import InternalError
from patch_compile.io.onnx_model import open_bits, open_rows
from patch_compile.tiles.inspect import Rows, violations
from patch_compile.tiles.pattern import codes_of, group_codes
from patch_compile.tiles.plan import Piece, Span, indices

__all__ = ["PieceTensor", "StackedTensor", "StoredWeight"]

# Strips of about this many bytes stay in the second-level cache.
_STRIP_BYTES = 2**21


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
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        first, second = (int(d) for d in self.tensor.shape.numpy())
        return (second, first) if self.transposed else (first, second)

    def rows(self) -> Rows:
        """Returns the elements as unsigned integers, (K, N), read as rows are sliced."""
        return open_rows(self.tensor) if self.transposed else self.bits()

    def bits(self) -> NDArray[Any]:
        """Returns the elements as unsigned integers, (K, N), without a copy."""
        stored = open_bits(self.tensor)
        return stored if self.transposed else stored.T


class _StripTensor(ir.LazyTensor):
    """A tensor that is made in strips along its first axis, each time it is read."""

    __slots__ = ()

    def strips(self) -> Iterator[NDArray[Any]]:
        """Yields consecutive strips as unsigned integers."""
        raise NotImplementedError

    def _whole(self) -> ir.TensorProtocol:
        strips = list(self.strips())
        return ir.Tensor(np.concatenate(strips).view(self.dtype.numpy()), name=self.name)

    def tofile(self, file: BinaryIO) -> None:
        """Writes the little-endian bytes strip by strip."""
        for strip in self.strips():
            file.write(strip.data)


class PieceTensor(_StripTensor):
    """The block of a weight that one MatMul multiplies by, (K', N'), masked.

    It holds no data: each read makes it again from the stored weight and the keep bits, in
    strips of K, so that memory does not grow with the weight. A `sparse24` piece checks
    every strip it hands out.
    """

    __slots__ = ("_keep", "_piece", "_weight")

    def __init__(
        self,
        weight: StoredWeight,
        piece: Piece,
        keep: Callable[[], NDArray[np.uint8]] | None,
        name: str,
    ) -> None:
        """Describes the piece; `keep` returns uint8 (N, ceil(K/8)), None keeps all."""
        rows, columns = piece.shape
        shape = ir.Shape((columns, rows))
        super().__init__(self._whole, weight.tensor.dtype, shape, name=name)
        self._weight = weight
        self._piece = piece
        self._keep = keep

    @property
    def step(self) -> int:
        """Rows of K in a strip."""
        width = max(1, self._weight.shape[0] * self.dtype.numpy().itemsize)
        return max(4, _STRIP_BYTES // width // 4 * 4)

    def strips(self, step: int | None = None) -> Iterator[NDArray[Any]]:
        """Yields consecutive strips along K as unsigned integers, (k, N')."""
        codes = None if self._keep is None else self._codes(self._keep())
        rows = self._weight.rows()
        for start, stop in self._cuts(step or self.step):
            strip = _taken(rows[start:stop], self._piece.rows)
            _mask_strip(strip, codes, self._piece.rows, start)
            if self._piece.role == "sparse24" and violations(strip, axis=0):
                raise InternalError(f"piece '{self.name}' | is not 2:4 from row {start} of K")
            yield strip

    def _codes(self, keep: NDArray[np.uint8]) -> NDArray[np.uint8]:
        codes = group_codes(keep, self._weight.shape[1])
        return codes if self._piece.part == "all" else codes_of(codes, self._piece.part)

    def _cuts(self, step: int) -> Iterator[Span]:
        for start, stop in self._piece.columns:
            for at in range(start, stop, step):
                yield at, min(at + step, stop)


class StackedTensor(_StripTensor):
    """Pieces of several weights side by side: one weight (K, N'), N' the sum of theirs."""

    __slots__ = ("_pieces",)

    def __init__(self, pieces: Sequence[PieceTensor], name: str) -> None:
        """Describes the tensor; the pieces are of one element type and take the same K."""
        heights = [int(piece.shape.numpy()[0]) for piece in pieces]
        if len(set(heights)) != 1:
            raise InternalError(f"piece '{name}' | stacks pieces of {heights} rows of K")
        width = sum(int(piece.shape.numpy()[1]) for piece in pieces)
        shape = ir.Shape((heights[0], width))
        super().__init__(self._whole, pieces[0].dtype, shape, name=name)
        self._pieces = tuple(pieces)

    def strips(self) -> Iterator[NDArray[Any]]:
        """Yields consecutive strips along K as unsigned integers, (k, N')."""
        step = min(piece.step for piece in self._pieces)
        for parts in zip(*(piece.strips(step) for piece in self._pieces), strict=True):
            yield np.concatenate(parts, axis=1)


def _mask_strip(
    strip: NDArray[Any], codes: NDArray[np.uint8] | None, rows: tuple[Span, ...], start: int
) -> None:
    """Zeroes in place what a strip of a weight loses.

    Args:
        strip: some rows of K and the given rows of N, unsigned integers (k, n).
        codes: keep codes of the weight, uint8 (N, ceil(K/4)); None keeps all.
        rows: spans of N.
        start: the strip's first row of K, a multiple of 4.
    """
    if codes is None:
        return
    first = start // 4
    last = first + -(-strip.shape[0] // 4)
    groups = np.ascontiguousarray(_taken(codes[:, first:last].T, rows))
    if (groups == 15).all():
        return
    for lane in range(4):
        kept = strip[lane::4]
        lane_bits = (groups[: kept.shape[0]] >> np.uint8(lane)) & np.uint8(1)
        np.multiply(kept, lane_bits.astype(kept.dtype), out=kept)


def _taken(array: NDArray[Any], spans: tuple[Span, ...]) -> NDArray[Any]:
    """Copies the columns that the spans hold, in row-major order."""
    if len(spans) == 1:
        start, stop = spans[0]
        return np.array(array[:, start:stop], order="C", copy=True)
    if array.flags.c_contiguous and len(spans) < 64:
        return np.concatenate([array[:, start:stop] for start, stop in spans], axis=1)
    return np.ascontiguousarray(array[:, indices(spans)])
