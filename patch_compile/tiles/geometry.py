"""Tile geometries: how an (N, K) weight is cut.

N: out features. K: in features, the axis that is summed over. R, C: tiles along N and K.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patch_compile.errors import RecipeError

__all__ = ["Geometry", "TileGrid"]

_FORMS = "'128x128', 'band:128', 'column:128' or 'weight'"


@dataclass(frozen=True)
class TileGrid:
    """The cut of one weight; tiles may differ in size.

    Attributes:
        rows: edges along N, from 0 to N, strictly rising.
        columns: edges along K, from 0 to K, strictly rising.
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]

    def __post_init__(self) -> None:
        for axis, edges in (("N", self.rows), ("K", self.columns)):
            rising = all(a < b for a, b in pairwise(edges))
            if len(edges) < 2 or edges[0] != 0 or not rising:
                raise RecipeError(
                    f"tile edges along {axis} | are {list(edges)[:8]}; "
                    "expected a strictly rising list that starts at 0"
                )

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.rows[-1], self.columns[-1]

    @property
    def tiles(self) -> tuple[int, int]:
        """(R, C)."""
        return len(self.rows) - 1, len(self.columns) - 1

    @cached_property
    def heights(self) -> NDArray[np.int64]:
        """Rows of each tile row, int64 (R,)."""
        return np.diff(np.asarray(self.rows, np.int64)).astype(np.int64)

    @cached_property
    def widths(self) -> NDArray[np.int64]:
        """Columns of each tile column, int64 (C,)."""
        return np.diff(np.asarray(self.columns, np.int64)).astype(np.int64)

    @property
    def areas(self) -> NDArray[np.int64]:
        """Weights in each tile, int64 (R, C)."""
        return np.multiply.outer(self.heights, self.widths)

    def expand(self, tiles: NDArray[Any]) -> NDArray[Any]:
        """Repeats one value a tile, (R, C), over the weight, (N, K)."""
        return np.repeat(np.repeat(tiles, self.heights, axis=0), self.widths, axis=1)

    def total(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """Sums values (N, K) over each tile, float64 (R, C)."""
        by_row = np.add.reduceat(values, self.rows[:-1], axis=0, dtype=np.float64)
        return np.add.reduceat(by_row, self.columns[:-1], axis=1)


@dataclass(frozen=True)
class Geometry:
    """A rule that gives every weight its grid; None stands for the whole axis.

    Attributes:
        rows: tile height along N.
        columns: tile width along K, a multiple of 4 so that no 2:4 group is cut.
    """

    rows: int | None
    columns: int | None

    def __post_init__(self) -> None:
        if self.columns is not None and (self.columns < 4 or self.columns % 4):
            raise RecipeError(
                f"tile width along K | is {self.columns}; expected a multiple of 4, "
                "or a 2:4 group would lie in two tiles"
            )
        if self.rows is not None and self.rows < 1:
            raise RecipeError(f"tile height along N | is {self.rows}; expected 1 or more")

    @classmethod
    def parse(cls, text: str) -> "Geometry":
        """Reads `RxC`, `band:R`, `column:C` or `weight`."""
        free = re.fullmatch(r"(\d{1,9})x(\d{1,9})", text)
        if free is not None:
            return cls(int(free[1]), int(free[2]))
        strip = re.fullmatch(r"(band|column):(\d{1,9})", text)
        if strip is not None:
            size = int(strip[2])
            return cls(size, None) if strip[1] == "band" else cls(None, size)
        if text == "weight":
            return cls(None, None)
        raise RecipeError(f"tile {text!r} | is not a geometry; expected {_FORMS}")

    def __str__(self) -> str:
        if self.rows is not None and self.columns is not None:
            return f"{self.rows}x{self.columns}"
        if self.rows is not None:
            return f"band:{self.rows}"
        return "weight" if self.columns is None else f"column:{self.columns}"

    def grid(self, shape: tuple[int, int]) -> TileGrid:
        """The grid of a weight of `shape` (N, K); the last tile of an axis may be smaller."""
        return TileGrid(_edges(shape[0], self.rows), _edges(shape[1], self.columns))


def _edges(size: int, step: int | None) -> tuple[int, ...]:
    if step is None:
        return (0, size)
    return (*range(0, size, step), size)
