"""The masks of a model."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from patch_compile.errors import MaskError
from patch_compile.tiles.weight_mask import WeightMask

__all__ = ["Masks"]


@dataclass(frozen=True, eq=False)
class Masks:
    """Masks by parameter name, and how they were made.

    Attributes:
        weights: one mask a weight; the key is the mask's own name.
        made_by: plain data about the source: method, recipe, model, versions.
    """

    weights: Mapping[str, WeightMask]
    made_by: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key, mask in self.weights.items():
            if key != mask.name:
                raise MaskError(f"mask '{key}' | is named '{mask.name}'; expected its key")

    def check(self) -> None:
        """Checks every mask; see `WeightMask.check`."""
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(WeightMask.check, self.weights.values()))

    @property
    def sparsity(self) -> float:
        """Zeros over all weights that have a mask."""
        total = sum(m.shape[0] * m.shape[1] for m in self.weights.values())
        return sum(m.zeros() for m in self.weights.values()) / max(1, total)
