"""Gram matrices of what linear layers read, one for each distinct input.

K: in features. T: tokens.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING
from weakref import ref

import numpy as np
from numpy.typing import NDArray

from patch_compile._require import require
from patch_compile.errors import ModelError
from patch_compile.learn.linears import Linear

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Grams", "idle"]


@dataclass(eq=False)
class Grams:
    """Sums X^T X of every input, X (T, K), while its `watch` is open.

    Layers that read one tensor (q, k and v; gate and up) share one matrix: the first of them
    to run is its owner. Memory is 4 K^2 bytes a distinct input.

    Attributes:
        linears: the layers to watch, by the names of their weights.
        owners: the name under which each weight's matrix is in `sums`.
        sums: float32 (K, K), by the names of the owners.
    """

    linears: Mapping[str, Linear]
    owners: dict[str, str] = field(default_factory=dict)
    sums: dict[str, "Tensor"] = field(default_factory=dict)
    _inputs: dict[str, "_Input"] = field(default_factory=dict)

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Adds what the layers read in the body."""
        handles = [
            linear.module.register_forward_pre_hook(partial(self._add, name))
            for name, linear in self.linears.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Returns the matrix of every weight, float32 (K, K); sharers get the same array."""
        made = {name: total.cpu().numpy() for name, total in self.sums.items()}
        return {name: made[self.owner(name)] for name in self.linears}

    def owner(self, name: str) -> str:
        """Returns the name under which a weight's matrix is in `sums`.

        Raises:
            ModelError: if the layer never ran.
        """
        if name not in self.owners:
            raise ModelError(idle(name))
        return self.owners[name]

    def _add(self, name: str, _module: "nn.Module", inputs: tuple["Tensor", ...]) -> None:
        x = inputs[0]
        if name not in self.owners:
            self.owners[name] = self._reader_of(x) or name
        owner = self.owners[name]
        if owner != name:
            self._check_shared(name, owner, x)
            return
        self._inputs[name] = _Input.of(x)
        rows = x.detach().reshape(-1, x.shape[-1]).float()
        if name not in self.sums:
            torch = require("torch", "learn")
            self.sums[name] = torch.zeros(rows.shape[1], rows.shape[1], device=x.device)
        self.sums[name].addmm_(rows.T, rows)

    def _reader_of(self, x: "Tensor") -> str | None:
        return next((name for name, seen in self._inputs.items() if seen.is_(x)), None)

    def _check_shared(self, name: str, owner: str, x: "Tensor") -> None:
        if not self._inputs[owner].is_(x):
            raise ModelError(
                f"weight '{name}' | read what '{owner}' reads when it first ran, and reads "
                "something else now; expected layers that always or never share their input; "
                "leave it out (--ignore)"
            )


@dataclass(frozen=True)
class _Input:
    """A tensor at one moment: its memory may serve another later, or be written to."""

    tensor: "ref[Tensor]"
    version: int

    @classmethod
    def of(cls, x: "Tensor") -> "_Input":
        return cls(ref(x), x._version)

    def is_(self, x: "Tensor") -> bool:
        return self.tensor() is x and self.version == x._version


def idle(name: str) -> str:
    """Says that a weight cannot be judged by a text."""
    return (
        f"weight '{name}' | did nothing for the calibration text; leave it out (--ignore) or "
        "give a longer text"
    )
