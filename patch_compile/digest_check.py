"""Whether weights are those that their masks were made for."""

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patch_compile.errors import MaskError
from patch_compile.io.digests import digest_key
from patch_compile.io.onnx_model import open_rows
from patch_compile.io.stored_weight import in_order
from patch_compile.passes.binding import Binding

__all__ = ["DigestCheck", "check_digests"]

Progress = Callable[[int, int, str], None]

_WORKERS = min(4, os.cpu_count() or 1)


class DigestCheck:
    """Compares a weight with the digests in its masks while something reads it.

    Attributes:
        verdicts: by mask name, `match`, or `unknown` where the mask stores none for the
            element type; None until the weight was read.
    """

    def __init__(self, binding: Binding) -> None:
        """Prepares the check of one weight; nothing is read yet."""
        weight = binding.site.weight
        dtype = weight.tensor.dtype.numpy().name
        self.tensor = weight.tensor
        self.verdicts: dict[str, str] | None = None
        self._key = digest_key(dtype, transposed=weight.transposed)
        self._masks = binding.masks
        self._axis = 1 if weight.transposed else 0
        self._hashes = [hashlib.sha256() for _ in binding.masks]
        self._row = 0

    @property
    def needed(self) -> bool:
        """Whether a mask stores a digest to compare with."""
        return any(self._key in mask.digests for mask in self._masks)

    def update(self, rows: NDArray[Any]) -> None:
        """Takes the next rows of the weight as it is stored."""
        start = 0
        for mask, total in zip(self._masks, self._hashes, strict=True):
            stop = start + mask.shape[0]
            part = rows[:, start:stop] if self._axis == 1 else self._within(rows, start, stop)
            if self._key in mask.digests and part.size:
                total.update(np.ascontiguousarray(part).view(np.uint8).data)
            start = stop
        self._row += rows.shape[0]

    def _within(self, rows: NDArray[Any], start: int, stop: int) -> NDArray[Any]:
        return rows[max(0, start - self._row) : max(0, stop - self._row)]

    def finish(self) -> None:
        """Gives the verdicts.

        Raises:
            MaskError: if the weight is another than a mask was made for.
        """
        self.verdicts = {
            mask.name: self._verdict(mask.name, mask.digests.get(self._key), total.hexdigest())
            for mask, total in zip(self._masks, self._hashes, strict=True)
        }

    def _verdict(self, name: str, stored: str | None, found: str) -> str:
        if stored is not None and stored != found:
            raise MaskError(
                f"weight '{name}' | differs from the weight its mask was made for, by the "
                "sha256 of its values; give the masks of this checkpoint, or pass "
                "--no-check-digests if the change was meant"
            )
        return "unknown" if stored is None else "match"

    def read(self) -> dict[str, str]:
        """Reads the weight, unless something did, and returns the verdicts."""
        if self.verdicts is None:
            if self.needed:
                for _ in in_order(open_rows(self.tensor), self):
                    pass
            self.finish()
        assert self.verdicts is not None
        return self.verdicts


def check_digests(bindings: Sequence[Binding], progress: Progress | None) -> dict[str, str]:
    """Reads every weight and compares it with the digest in its mask; threads hash at once.

    Returns:
        By mask name, `match`, or `unknown` where the mask stores none for the element type.

    Raises:
        MaskError: if a weight is another than its mask was made for.
    """
    checked: dict[str, str] = {}
    checks = [DigestCheck(binding) for binding in bindings]
    with ThreadPoolExecutor(_WORKERS) as pool:
        for done, verdicts in enumerate(pool.map(DigestCheck.read, checks), start=1):
            checked.update(verdicts)
            if progress is not None:
                progress(done, len(checks), "checking digests")
    return checked
