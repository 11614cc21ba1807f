"""Is an array 2:4? Answered from its bits, in its own element type.

N: out features. K: in features, the axis along which groups of 4 are counted.
"""

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from patch_compile.tiles.geometry import TileGrid

__all__ = ["Rows", "group_counts", "nonzero", "tile_counts", "violations"]


class Rows(Protocol):
    """A 2-D array, or something that reads its rows when they are sliced."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, columns)."""
        ...

    def __getitem__(self, rows: slice, /) -> NDArray[Any]:
        """Returns consecutive rows."""
        ...


# Blocks of about this many elements stay in the second-level cache.
_BLOCK = 2**18


def nonzero(bits: NDArray[Any], *, signed_zero: bool = True) -> NDArray[np.bool_]:
    """Tells which elements are not zero.

    Args:
        bits: the elements as unsigned integers.
        signed_zero: the element type is a float, whose -0.0 is zero too: the sign bit, the
            highest, is shifted out. Integers keep it.
    """
    magnitude = np.left_shift(bits, 1) if signed_zero else bits
    found: NDArray[np.bool_] = np.not_equal(magnitude, 0)
    return found


def group_counts(nonzero: NDArray[np.bool_], axis: int) -> NDArray[np.uint8]:
    """Counts non-zeros in every 4 consecutive elements along `axis` of a 2-D array.

    Args:
        nonzero: bool; its length along `axis` may leave a last group of fewer than 4.
        axis: 0 for a weight stored (K, N), 1 for (N, K).

    Returns:
        uint8, `axis` shortened to ceil(length/4).
    """
    ones = nonzero.view(np.uint8)
    if axis == 1 and ones.shape[1] % 4 == 0 and ones.flags.c_contiguous:
        # Four flags in one word: one multiplication adds them up in the top byte.
        words = ones.view("<u4")
        return ((words * np.uint32(0x01010101)) >> np.uint32(24)).astype(np.uint8)
    lanes = ones if axis == 0 else ones.T
    counts = lanes[0::4].copy()
    for lane in range(1, 4):
        rest = lanes[lane::4]
        counts[: rest.shape[0]] += rest
    return counts if axis == 0 else counts.T


def violations(bits: Rows, axis: int, *, signed_zero: bool = True) -> int:
    """Counts the groups of 4 along `axis` that hold more than two non-zeros."""
    total = 0
    for block in _blocks(bits, axis):
        counts = group_counts(nonzero(block, signed_zero=signed_zero), axis)
        total += int(np.count_nonzero(counts > 2))
    return total


def _blocks(bits: Rows, axis: int) -> Iterator[NDArray[Any]]:
    # Cut along the first axis: whole groups of it when that is K.
    step = max(1, _BLOCK // max(1, bits.shape[1]))
    step = max(4, step // 4 * 4) if axis == 0 else step
    for at in range(0, bits.shape[0], step):
        yield bits[at : at + step]


def tile_counts(
    bits: Rows, grid: TileGrid, *, transposed: bool, signed_zero: bool = True
) -> tuple[NDArray[np.uint8], int]:
    """Finds the fullest group of every tile, and the zeros in all.

    Args:
        bits: the weight as unsigned integers, stored (K, N) if `transposed`, else (N, K).
        grid: the tiles; its K edges are multiples of 4, but for the last.
        transposed: how the weight is stored.
        signed_zero: see `nonzero`.

    Returns:
        uint8 (R, C): at most 2 where the tile is 2:4. And the number of zeros.
    """
    axis = 0 if transposed else 1
    groups, filled = [], 0
    for block in _blocks(bits, axis):
        counts = group_counts(nonzero(block, signed_zero=signed_zero), axis)
        filled += int(counts.sum(dtype=np.int64))
        groups.append(_tallest(counts.T if axis == 0 else counts, grid, axis))
    joined = np.concatenate(groups, axis=1 - axis)
    starts = [edge // 4 for edge in grid.columns[:-1]] if axis == 0 else grid.rows[:-1]
    fullest = np.maximum.reduceat(joined, starts, axis=1 - axis)
    return fullest, bits.shape[0] * bits.shape[1] - filled


def _tallest(counts: NDArray[np.uint8], grid: TileGrid, axis: int) -> NDArray[np.uint8]:
    """Reduces (N, K/4) counts along the axis that one block holds whole."""
    if axis == 0:
        return np.maximum.reduceat(counts, grid.rows[:-1], axis=0)
    return np.maximum.reduceat(counts, [edge // 4 for edge in grid.columns[:-1]], axis=1)
