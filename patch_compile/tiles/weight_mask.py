"""What is kept of one weight, tile by tile.

N: out features. K: in features. R, C: tiles along N and K.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from patch_compile.errors import MaskError
from patch_compile.tiles.geometry import TileGrid
from patch_compile.tiles.pattern import crowded, group_codes, pack_keep, unpack_keep

__all__ = ["WeightMask", "concatenate", "from_keep"]

KeepBits = Callable[[], NDArray[np.uint8]]


@dataclass(frozen=True, eq=False)
class WeightMask:
    """The mask of one weight: which tiles are dense, and what stays in the others.

    Attributes:
        name: the parameter's name, e.g. `model.layers.0.mlp.up_proj.weight`.
        grid: the cut into tiles.
        dense: bool (R, C); a tile that is not dense is 2:4 along K.
        bits: returns the packed keep mask, uint8 (N, ceil(K/8)); called when needed, so
            that a mask of a large model need not stay in memory.
        scores: float32 (R, C), the estimated loss increase if the tile goes 2:4, or None.
        digests: sha256 of the original weight by element type and layout: `float16` of its
            row-major (N, K) bytes, `float16.T` of its (K, N) bytes; empty when unknown.
        geometry: the name of the geometry the grid came from, for people.
        ties: int32 (R, C) or None: tiles of one number, in whatever weight of the model, are
            dense or 2:4 together.
    """

    name: str
    grid: TileGrid
    dense: NDArray[np.bool_]
    bits: KeepBits = field(repr=False)
    scores: NDArray[np.float32] | None = field(default=None, repr=False)
    digests: Mapping[str, str] = field(default_factory=dict, repr=False)
    geometry: str = "?"
    ties: NDArray[np.int32] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if any(edge % 4 for edge in self.grid.columns[:-1]):
            raise MaskError(
                f"weight '{self.name}' | has tile edges {self.grid.columns[:4]} along K; "
                "expected multiples of 4, or a 2:4 group would lie in two tiles"
            )
        self._check_shape("tile map", self.dense)
        if self.scores is not None:
            self._check_shape("scores", self.scores)
        if self.ties is not None:
            self._check_shape("ties", self.ties)

    def _check_shape(self, what: str, array: NDArray[Any]) -> None:
        if array.shape != self.grid.tiles:
            raise MaskError(
                f"weight '{self.name}' | {what} has shape {array.shape}; expected "
                f"{self.grid.tiles} for a weight of shape {self.grid.shape}"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.grid.shape

    @property
    def sparse_share(self) -> float:
        """Share of the weight's area that lies in 2:4 tiles."""
        sparse = int(self.grid.areas[~self.dense].sum())
        return sparse / max(1, self.shape[0] * self.shape[1])

    def keep(self) -> NDArray[np.bool_]:
        """Returns the keep mask, bool (N, K)."""
        return unpack_keep(self.bits(), self.shape[1])

    def codes(self) -> NDArray[np.uint8]:
        """Returns the keep mask as codes of 4, uint8 (N, ceil(K/4))."""
        return group_codes(self.bits(), self.shape[1])

    def zeros(self) -> int:
        """Counts the weights that go."""
        n, k = self.shape
        return n * k - self._sums[0]

    @cached_property
    def _sums(self) -> tuple[int, int]:
        """How many weights stay, and a checksum of the bits: one reading for both."""
        bits = self.bits()
        return int(np.bitwise_count(bits).sum(dtype=np.int64)), crc32(bits.data)

    def fingerprint(self) -> str:
        """Returns a short text that tells this mask from any other in practice."""
        edges = (self.grid.rows, self.grid.columns, self.dense.tobytes())
        return f"{self.name}:{crc32(repr(edges).encode()):08x}{self._sums[1]:08x}"

    def check(self) -> None:
        """Checks that every sparse tile is 2:4 along K and that the bits fit the shape.

        Raises:
            MaskError: naming the weight, the tile and the first group that is not.
        """
        k = self.shape[1]
        bits = self.bits()
        self._check_bits(bits)
        flags = crowded(bits)
        by_band = np.bitwise_or.reduceat(flags, self.grid.rows[:-1], axis=0)
        starts = [edge // 4 for edge in self.grid.columns[:-1]]
        groups = group_codes(by_band, k) != 0
        wrong = np.logical_or.reduceat(groups, starts, axis=1) & ~self.dense
        if wrong.any():
            row, column = (int(index) for index in np.argwhere(wrong)[0])
            raise MaskError(self._violation(flags, row, column))

    def _check_bits(self, bits: NDArray[np.uint8]) -> None:
        n, k = self.shape
        if bits.shape != (n, -(-k // 8)):
            raise MaskError(
                f"weight '{self.name}' | keep bits have shape {bits.shape}; expected "
                f"{(n, -(-k // 8))} for a weight of shape {(n, k)}"
            )
        if k % 8 and (bits[:, -1] >> np.uint8(k % 8)).any():
            raise MaskError(
                f"weight '{self.name}' | keeps weights beyond its {k} in features; expected "
                "zero bits there; make the masks again"
            )

    def _violation(self, flags: NDArray[np.uint8], tile_row: int, tile_column: int) -> str:
        top, bottom = self.grid.rows[tile_row : tile_row + 2]
        left, right = (-(-e // 4) for e in self.grid.columns[tile_column : tile_column + 2])
        groups = group_codes(flags[top:bottom], self.shape[1])[:, left:right]
        row, group = (int(index) for index in np.argwhere(groups)[0])
        row, group = row + top, group + left
        kept = int(np.bitwise_count(self.codes()[row, group]))
        return (
            f"weight '{self.name}' | sparse tile ({tile_row}, {tile_column}) keeps {kept} of "
            f"the 4 weights at row {row}, columns {4 * group}-{4 * group + 3}; expected at "
            "most 2; mark the tile dense or make the mask again"
        )


def from_keep(
    name: str,
    grid: TileGrid,
    dense: NDArray[np.bool_],
    keep: NDArray[np.bool_],
    *,
    scores: NDArray[np.float32] | None = None,
    digests: Mapping[str, str] | None = None,
    geometry: str = "?",
    ties: NDArray[np.int32] | None = None,
) -> WeightMask:
    """Builds a mask that holds its keep mask, bool (N, K), packed in memory."""
    packed = pack_keep(keep)
    return WeightMask(name, grid, dense, lambda: packed, scores, digests or {}, geometry, ties)


def concatenate(masks: Sequence[WeightMask]) -> WeightMask:
    """Stacks masks along N, as a fused `qkv_proj` stacks its weights; K must agree."""
    first = masks[0]
    if len(masks) == 1:
        return first
    widths = {mask.shape[1] for mask in masks}
    if len(widths) != 1:
        names = [mask.name for mask in masks]
        raise MaskError(f"masks {names} | have in features {sorted(widths)}; expected one")
    columns = tuple(sorted({edge for mask in masks for edge in mask.grid.columns}))
    grid = TileGrid(_stacked_rows(masks), columns)
    dense = np.concatenate([_refined(mask, columns) for mask in masks])
    return WeightMask(
        name="+".join(mask.name for mask in masks),
        grid=grid,
        dense=dense,
        bits=lambda: np.concatenate([mask.bits() for mask in masks]),
        geometry=first.geometry,
    )


def _stacked_rows(masks: Sequence[WeightMask]) -> tuple[int, ...]:
    edges, start = [0], 0
    for mask in masks:
        edges += [start + edge for edge in mask.grid.rows[1:]]
        start = edges[-1]
    return tuple(edges)


def _refined(mask: WeightMask, columns: tuple[int, ...]) -> NDArray[np.bool_]:
    old = np.searchsorted(mask.grid.columns, columns[:-1], side="right") - 1
    return mask.dense[:, old]
