"""Targets: a GPU and a dtype, and what products and copies cost there.

M: tokens. N: out features. K: in features.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from patch_compile.errors import ModelError, RecipeError
from patch_compile.targets.datasheets import BYTES, GPUS
from patch_compile.targets.features import weight_bytes
from patch_compile.targets.model import LatencyModel, Prediction
from patch_compile.targets.table import QUANTITIES, Table

__all__ = ["ASSUMED", "LAUNCH_GAP_US", "Target", "available", "load", "parse"]

# Between two kernels of one CUDA graph: 3.4 us a kernel of 2.9 us (NVIDIA technical blog,
# "Getting Started with CUDA Graphs", 2019, on a V100).
LAUNCH_GAP_US = 0.5

# What a kernel takes that moves almost nothing. Assumed, not measured.
_SHORTEST_US = 2.0

# Share of the datasheet's bandwidth that a copy reaches. Assumed; caches may do better.
_COPY_SHARE = 0.8

# The same in words, for whoever reads a prediction.
ASSUMED = (
    f"a launch gap of {LAUNCH_GAP_US} us, {_SHORTEST_US} us of the shortest kernel, and moves "
    f"and sums at {_COPY_SHARE:.0%} of the datasheet's bandwidth: assumed, not measured"
)

# Activations are bf16 or fp16 between products, whatever the operands' dtype.
_ACTIVATION_BYTES = 2


@dataclass(frozen=True, eq=False)
class Target:
    """Predicted costs on one GPU, in microseconds.

    Attributes:
        gpu: as in `available`.
        dtype: of the operands of products.
        model: of the products.
        file: the table it was read from; None for those that are shipped.
    """

    gpu: str
    dtype: str
    model: LatencyModel
    file: Path | None = None

    @property
    def name(self) -> str:
        """`gpu-dtype`, as `parse` takes it, or the name of the table's file."""
        return self.file.name if self.file is not None else f"{self.gpu}-{self.dtype}"

    @property
    def estimate(self) -> bool:
        """True if nothing was measured on it: scaled from another by the datasheets."""
        return self.model.estimate

    @property
    def basis(self) -> str:
        """In words, what its predictions rest on."""
        if self.file is not None:
            return f"predicted from latencies of {self.model.table.source}"
        table = f"{self.model.table.gpu}-{self.model.table.dtype}"
        if self.estimate:
            return f"an estimate, scaled from latencies measured on {table} by datasheets"
        return "predicted from measured GEMM latencies"

    @property
    def measured_tokens(self) -> tuple[int, int]:
        """The fewest and the most tokens of its table."""
        tokens = self.model.table.sizes[:, 0]
        return int(tokens.min()), int(tokens.max())

    def measured(self, tokens: int) -> bool:
        """Whether so few and so many tokens were measured; others are extrapolated."""
        least, most = self.measured_tokens
        return least <= tokens <= most

    def basis_at(self, tokens: Iterable[int]) -> str:
        """Like `basis`, and which of these numbers of tokens are extrapolated."""
        beyond = [f"{count:,}" for count in tokens if not self.measured(count)]
        if not beyond:
            return self.basis
        least, most = self.measured_tokens
        return (
            f"{self.basis}; {' and '.join(beyond)} tokens by extrapolation, from {least:,} to "
            f"{most:,} were measured"
        )

    def gemm_us(self, m: int, n: int, k: int, *, sparse24: bool = False) -> float:
        """Predicts the microseconds of `Y[m, n] = X[m, k] W[n, k]^T`.

        Args:
            m: tokens.
            n: out features.
            k: in features.
            sparse24: W is 2:4 and a sparse kernel runs.
        """
        return float(self.gemms_us(np.array([[m, n, k]]), sparse24=sparse24)[0])

    def gemms_us(
        self, sizes: NDArray[np.int64], *, sparse24: bool = False
    ) -> NDArray[np.float64]:
        """Predicts many at once: sizes (Q, 3) of m, n, k; microseconds (Q,).

        Raises:
            RecipeError: if a size is below 1.
        """
        if sizes.size and sizes.min() < 1:
            raise RecipeError(f"size of a product | is {sizes.min()}; expected 1 or more")
        return np.exp(self.model.log_us(sizes.astype(np.float64), sparse24=sparse24))

    def weight_us(self, n: int, k: int, *, sparse24: bool) -> float:
        """The least microseconds of reading W [n, k] from memory, at all of its bandwidth.

        Tables were measured with warm caches, which hold a W that the one product reads again
        and again. In a model larger than the cache every W comes from memory.
        """
        moved = n * k * weight_bytes(self.dtype, sparse24=sparse24)
        return moved / (GPUS[self.gpu].bandwidth * 1e3)

    def predict(self, m: int, n: int, k: int, *, sparse24: bool = False) -> Prediction:
        """Predicts one product with an interval, and how far it is from what was measured."""
        if min(m, n, k) < 1:
            raise RecipeError(f"size of a product | is {min(m, n, k)}; expected 1 or more")
        return self.model.predict(m, n, k, sparse24=sparse24)

    def moved_us(self, elements: int) -> float:
        """Predicts a Concat, Gather or Slice of so many elements: read and written once."""
        return self._traffic_us(2 * elements)

    def added_us(self, elements: int) -> float:
        """Predicts an Add of two tensors of so many elements: two read, one written."""
        return self._traffic_us(3 * elements)

    def _traffic_us(self, elements: int) -> float:
        rate = GPUS[self.gpu].bandwidth * 1e3 * _COPY_SHARE
        return LAUNCH_GAP_US + _SHORTEST_US + elements * _ACTIVATION_BYTES / rate


def available() -> dict[str, tuple[str, ...]]:
    """Returns the dtypes of every GPU; `load(...).estimate` tells which were measured."""
    return {gpu: tuple(d for d in BYTES if _table_name(gpu, d)) for gpu in GPUS}


@cache
def load(gpu: str, dtype: str) -> Target:
    """Returns a target by its names in `available`.

    Raises:
        RecipeError: if there is no such GPU, or no such dtype on it.
    """
    known = available()
    if gpu not in known:
        raise RecipeError(
            f"target GPU '{gpu}' | is unknown; expected one of {', '.join(known)}"
        )
    if dtype not in known[gpu]:
        raise RecipeError(
            f"target dtype '{dtype}' | is unknown on {gpu}; expected one of "
            f"{', '.join(known[gpu])}"
        )
    name = _table_name(gpu, dtype)
    table, source = _shipped(name), name.partition("-")[0]
    beside = tuple(
        _shipped(other)
        for other in sorted(_tables() - {name})
        if other.startswith(f"{source}-")
    )
    return Target(gpu, dtype, LatencyModel(table, GPUS[gpu], dtype, beside))


def parse(name: str) -> Target:
    """Returns the target of a name like `a100-bf16`, or of a table that `calibrate` wrote.

    Args:
        name: a GPU and a dtype, or the path of a .json file.

    Raises:
        RecipeError: if it is none.
        ModelError: if the file is no table.
    """
    if name.endswith(".json"):
        return _own(Path(name))
    gpu, dash, dtype = name.partition("-")
    if gpu in GPUS and not dash:
        raise RecipeError(
            f"target '{name}' | names no dtype; expected a GPU and a dtype, like 'a100-bf16'"
        )
    return load(gpu, dtype)


def _own(path: Path) -> Target:
    try:
        return _read(path.resolve(), path.stat().st_mtime_ns)
    except OSError as error:
        raise RecipeError(
            f"target '{path}' | cannot be read: {error.strerror}; expected a table that "
            "calibrate wrote, or a GPU and a dtype, like 'a100-bf16'"
        ) from error


@cache
def _read(path: Path, changed: int) -> Target:
    """Reads a file anew when it was changed; equal targets share what was predicted."""
    del changed
    try:
        table = Table.from_json(path.read_text("utf-8"))
    except UnicodeDecodeError as error:
        raise ModelError(f"table '{path.name}' | is no text; make it again") from error
    except ModelError as error:
        # A table does not know its file.
        wrong = str(error).partition(" | ")[2]
        raise ModelError(f"table '{path.name}' | {wrong}") from error
    if {*table.parameters} != {*QUANTITIES}:
        raise ModelError(
            f"table '{path.name}' | has parameters of "
            f"{', '.join(table.parameters) or 'nothing'}; expected those of "
            f"{', '.join(QUANTITIES)}; make it by calibrate"
        )
    model = LatencyModel(table, GPUS[table.gpu], table.dtype)
    return Target(table.gpu, table.dtype, model, path)


def _table_name(gpu: str, dtype: str) -> str:
    """The file that predicts this dtype on this GPU; "" if none can."""
    if dtype not in GPUS[gpu].faster:
        return ""
    source = GPUS[gpu].like or gpu
    # fp16 and bf16 run at one rate: each stands in for the other where it was not measured.
    for measured in (dtype, {"fp16": "bf16", "bf16": "fp16"}.get(dtype)):
        if f"{source}-{measured}.json" in _tables():
            return f"{source}-{measured}.json"
    return ""


@cache
def _shipped(name: str) -> Table:
    text = (files("patch_compile.targets") / "tables" / name).read_text("utf-8")
    return Table.from_json(text)


@cache
def _tables() -> frozenset[str]:
    folder = files("patch_compile.targets") / "tables"
    return frozenset(entry.name for entry in folder.iterdir())
