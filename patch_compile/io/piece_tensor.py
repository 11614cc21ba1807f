"""One piece of a masked weight, made in strips while it is written.

N: out features. K: in features. A MatMul's weight is stored (K, N), a Gemm's with transB
(N, K).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, Protocol

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from patch_compile.errors import InternalError
from patch_compile.io.stored_weight import Key, StoredWeight, rows_in_a_strip
from patch_compile.tiles.inspect import violations
from patch_compile.tiles.pattern import codes_of
from patch_compile.tiles.plan import Piece, Span, indices

__all__ = ["Cutter", "PieceTensor", "StackedTensor", "StripTensor"]


class Cutter(Protocol):
    """Makes blocks of one tensor of strips of its weights."""

    def __call__(
        self, strips: Mapping[Key, NDArray[Any]], start: int, stop: int, /
    ) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yields what rows `start` to `stop` of K give: its first row and (k, N')."""
        ...


class StripTensor(ir.LazyTensor):
    """A tensor (K', N') that is made in strips of stored weights, each time it is read."""

    __slots__ = ()

    @property
    def weights(self) -> tuple[StoredWeight, ...]:
        """What it is made of; all have one K."""
        raise NotImplementedError

    @property
    def columns(self) -> tuple[Span, ...]:
        """The spans of K that it holds, in its own order."""
        raise NotImplementedError

    def cutter(self) -> Cutter:
        """Reads the masks and returns what makes its blocks."""
        raise NotImplementedError

    def strips(self) -> Iterator[NDArray[Any]]:
        """Yields consecutive strips as unsigned integers."""
        cut = self.cutter()
        rows = {weight.key: weight.rows() for weight in self.weights}
        for start, stop in self._cuts():
            strips = {key: each[start:stop] for key, each in rows.items()}
            for _, block in cut(strips, start, stop):
                yield block

    def _cuts(self) -> Iterator[Span]:
        width = max(weight.shape[0] for weight in self.weights)
        step = rows_in_a_strip(width, self.dtype.numpy().itemsize)
        for start, stop in self.columns:
            for at in range(start, stop, step):
                yield at, min(at + step, stop)

    def _whole(self) -> ir.TensorProtocol:
        strips = list(self.strips())
        return ir.Tensor(np.concatenate(strips).view(self.dtype.numpy()), name=self.name)

    def tofile(self, file: BinaryIO) -> None:
        """Writes the little-endian bytes strip by strip."""
        for strip in self.strips():
            file.write(strip.data)


class PieceTensor(StripTensor):
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
    def weights(self) -> tuple[StoredWeight, ...]:
        """The weight it is a block of."""
        return (self._weight,)

    @property
    def columns(self) -> tuple[Span, ...]:
        """The spans of K that it holds, in its own order."""
        return self._piece.columns

    def cutter(self) -> Cutter:
        """Reads the keep bits and returns what makes its blocks."""
        bits = None if self._keep is None else _turned(self._keep(), self._piece.rows)
        spans, at = [], 0
        for start, stop in self._piece.columns:
            spans.append((start, stop, at))
            at += stop - start

        def cut(
            strips: Mapping[Key, NDArray[Any]], start: int, stop: int
        ) -> Iterator[tuple[int, NDArray[Any]]]:
            strip = strips[self._weight.key]
            for left, right, at in spans:
                first, last = max(start, left), min(stop, right)
                if first < last:
                    block = self._block(strip[first - start : last - start], bits, first)
                    yield at + first - left, block

        return cut

    def _block(
        self, strip: NDArray[Any], bits: NDArray[np.uint8] | None, start: int
    ) -> NDArray[Any]:
        block = _taken(strip, self._piece.rows)
        if bits is not None:
            codes = _codes(bits, start // 4, -(-(start + block.shape[0]) // 4))
            part = self._piece.part
            _mask_strip(block, codes if part == "all" else codes_of(codes, part))
        if self._piece.role == "sparse24" and violations(block, axis=0):
            raise InternalError(f"piece '{self.name}' | is not 2:4 from row {start} of K")
        return block


class StackedTensor(StripTensor):
    """Pieces of several weights side by side: one weight (K, N'), N' the sum of theirs."""

    __slots__ = ("_pieces",)

    def __init__(self, pieces: Sequence[PieceTensor], name: str) -> None:
        """Describes the tensor; the pieces are of one element type and take the same K."""
        columns = {piece.columns for piece in pieces}
        if len(columns) != 1:
            raise InternalError(f"piece '{name}' | stacks pieces over {sorted(columns)} of K")
        width = sum(int(piece.shape.numpy()[1]) for piece in pieces)
        shape = ir.Shape((int(pieces[0].shape.numpy()[0]), width))
        super().__init__(self._whole, pieces[0].dtype, shape, name=name)
        self._pieces = tuple(pieces)

    @property
    def weights(self) -> tuple[StoredWeight, ...]:
        """Those of its pieces, in order."""
        return tuple(weight for piece in self._pieces for weight in piece.weights)

    @property
    def columns(self) -> tuple[Span, ...]:
        """The spans of K that it holds, in its own order."""
        return self._pieces[0].columns

    def cutter(self) -> Cutter:
        """Reads the keep bits of all pieces and returns what makes its blocks."""
        cutters = [piece.cutter() for piece in self._pieces]

        def cut(
            strips: Mapping[Key, NDArray[Any]], start: int, stop: int
        ) -> Iterator[tuple[int, NDArray[Any]]]:
            for parts in zip(*(each(strips, start, stop) for each in cutters), strict=True):
                yield parts[0][0], np.concatenate([block for _, block in parts], axis=1)

        return cut


def _turned(keep: NDArray[np.uint8], rows: tuple[Span, ...]) -> NDArray[np.uint8]:
    """The keep bits of some rows of N, uint8 (ceil(K/8), n): a strip's lie together."""
    return np.ascontiguousarray(np.concatenate([keep[a:b] for a, b in rows]).T)


def _codes(bits: NDArray[np.uint8], first: int, last: int) -> NDArray[np.uint8]:
    """Keep codes `first` to `last` along K, uint8 (last - first, n), of turned bits."""
    packed = bits[first // 2 : -(-last // 2)]
    codes = np.empty((2 * packed.shape[0], packed.shape[1]), np.uint8)
    np.bitwise_and(packed, 15, out=codes[0::2])
    np.right_shift(packed, 4, out=codes[1::2])
    return codes[first % 2 : first % 2 + last - first]


def _mask_strip(strip: NDArray[Any], codes: NDArray[np.uint8]) -> None:
    """Zeroes in place what a strip of a weight loses.

    Args:
        strip: rows of K from a multiple of 4 on, unsigned integers (k, n).
        codes: their keep codes, uint8 (ceil(k/4), n).
    """
    if (codes == 15).all():
        return
    for lane in range(4):
        kept = strip[lane::4]
        lane_bits = (codes[: kept.shape[0]] >> np.uint8(lane)) & np.uint8(1)
        np.multiply(kept, lane_bits.astype(kept.dtype), out=kept)


def _taken(array: NDArray[Any], spans: tuple[Span, ...]) -> NDArray[Any]:
    """Copies the columns that the spans hold, in row-major order."""
    if len(spans) == 1:
        start, stop = spans[0]
        return np.array(array[:, start:stop], order="C", copy=True)
    if array.flags.c_contiguous and len(spans) < 64:
        return np.concatenate([array[:, start:stop] for start, stop in spans], axis=1)
    return np.ascontiguousarray(array[:, indices(spans)])
