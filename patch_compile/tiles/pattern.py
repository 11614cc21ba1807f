"""Keep bits and 2:4 patterns.

A keep mask says which weights of an (N, K) weight stay. It is stored as one bit a weight:
uint8 (N, ceil(K/8)), low bit first. Four bits, a *code* 0..15, describe one group of 4
consecutive weights along K; a group is 2:4 when its code has at most two bits set.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from patch_compile.errors import MaskError

__all__ = [
    "codes_of",
    "crowded",
    "group_codes",
    "pack_keep",
    "top2_of_4",
    "unpack_keep",
]


def pack_keep(keep: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Packs a keep mask, bool (N, K), into bits, uint8 (N, ceil(K/8))."""
    return np.packbits(keep, axis=1, bitorder="little")


def unpack_keep(packed: NDArray[np.uint8], k: int) -> NDArray[np.bool_]:
    """Unpacks bits, uint8 (N, ceil(K/8)), into a keep mask, bool (N, K)."""
    return np.unpackbits(packed, axis=1, count=k, bitorder="little").view(np.bool_)


def group_codes(packed: NDArray[np.uint8], k: int) -> NDArray[np.uint8]:
    """Splits bits, uint8 (N, ceil(K/8)), into codes, uint8 (N, ceil(K/4))."""
    codes = np.empty((packed.shape[0], 2 * packed.shape[1]), np.uint8)
    np.bitwise_and(packed, 15, out=codes[:, 0::2])
    np.right_shift(packed, 4, out=codes[:, 1::2])
    return codes[:, : -(-k // 4)]


# For every code the one with its two lowest bits: clearing the lowest bit of c is c & (c - 1).
_ALL = np.arange(16, dtype=np.uint8)
_FIRST = _ALL ^ (_ALL & (_ALL - 1) & ((_ALL & (_ALL - 1)) - 1))


def codes_of(codes: NDArray[np.uint8], part: Literal["first", "rest"]) -> NDArray[np.uint8]:
    """The first two kept weights of every group, or those that are left; both are 2:4.

    Args:
        codes: uint8, any shape.
        part: which.
    """
    first = _FIRST[codes]
    return first if part == "first" else codes ^ first


def crowded(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Flags the groups of 4 that keep more than two weights.

    Args:
        packed: uint8 (N, ceil(K/8)), two groups a byte.

    Returns:
        uint8 of the same shape: bit 3 flags the low group, bit 7 the high one.
    """
    # Counts bits in place, pairs then nibbles; adding 5 carries into the top bit from 3 on.
    pairs = packed - ((packed >> np.uint8(1)) & np.uint8(0x55))
    counts = (pairs & np.uint8(0x33)) + ((pairs >> np.uint8(2)) & np.uint8(0x33))
    return (counts + np.uint8(0x55)) & np.uint8(0x88)


def top2_of_4(saliency: NDArray[Any]) -> NDArray[np.bool_]:
    """Keeps the two largest of every 4 consecutive values along K; ties go to the left.

    Args:
        saliency: float (N, K), K a multiple of 4.

    Returns:
        The keep mask, bool (N, K), with exactly two of four set.
    """
    rows, k = saliency.shape
    if k % 4:
        raise MaskError(f"in features | are {k}; a 2:4 pattern needs a multiple of 4")
    groups = saliency.reshape(rows, k // 4, 4)
    order = np.argsort(-groups, axis=2, kind="stable")[:, :, :2]
    keep = np.zeros(groups.shape, np.bool_)
    np.put_along_axis(keep, order, True, axis=2)
    return keep.reshape(rows, k)
