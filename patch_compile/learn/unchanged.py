"""A model that is changed, and must go on computing what it did."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from patch_compile._require import require
from patch_compile.errors import ModelError
from patch_compile.learn.axes import Axis
from patch_compile.learn.model import LoadedModel
from patch_compile.learn.questions import uncached
from patch_compile.learn.readable import check_windows

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Answers"]

# The logits' largest difference, as a share of the largest logit: float32 sums in another
# order, through all layers. SmolLM2-135M has 1e-5.
_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class Answers:
    """What a model answered to a window of text before it was changed.

    Attributes:
        model: to ask again.
        window: token numbers, int64 (T,).
        logits: float32 (1, T, vocabulary).
    """

    model: LoadedModel
    window: NDArray[np.int64]
    logits: "Tensor"

    @classmethod
    def of(cls, model: LoadedModel, window: NDArray[np.int64]) -> "Answers":
        """Asks a model.

        Raises:
            ModelError: if the window is none that the model reads.
        """
        check_windows(model.module, window[None])
        return cls(model, window, _logits(model, window))

    @property
    def largest(self) -> float:
        """The largest logit."""
        return float(self.logits.abs().max())

    def difference(self) -> float:
        """Asks again, and returns the largest difference of a logit.

        Raises:
            ModelError: if that is more than rounding.
        """
        found = float((_logits(self.model, self.window) - self.logits).abs().max())
        # Written so that NaN fails too.
        if not found <= _TOLERANCE * self.largest:
            raise ModelError(
                "model | computes something else once its channels have moved: a logit "
                f"differs by {found:.3g}, the largest is {self.largest:.3g}; expected layers "
                "that treat all channels alike; leave axes out, 'residual' first"
            )
        return found

    def try_axes(self, axes: Sequence[Axis], rng: np.random.Generator) -> None:
        """Moves the channels of axes at random, asks again, and moves them back.

        Raises:
            ModelError: if the model minds.
        """
        orders = [
            rng.permuted(np.tile(np.arange(axis.width), (axis.parts, 1)), axis=1)
            for axis in axes
        ]
        for axis, order in zip(axes, orders, strict=True):
            axis.apply(order)
        self.difference()
        for axis, order in zip(axes, orders, strict=True):
            axis.apply(np.argsort(order, axis=1))


def _logits(model: LoadedModel, window: NDArray[np.int64]) -> "Tensor":
    torch = require("torch", "learn")
    with torch.no_grad():
        ids = torch.from_numpy(window)[None].to(model.module.device)
        logits: Tensor = model.module(input_ids=ids, **uncached(model.module)).logits.float()
    return logits
