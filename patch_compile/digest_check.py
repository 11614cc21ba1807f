"""Whether weights are those that their masks were made for."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from patch_compile.errors import MaskError
from patch_compile.passes.binding import Binding, slice_digest
from patch_compile.passes.sites import Site
from patch_compile.tiles.weight_mask import WeightMask

__all__ = ["check_digests"]

Progress = Callable[[int, int, str], None]

_WORKERS = min(4, os.cpu_count() or 1)


def check_digests(bindings: Sequence[Binding], progress: Progress | None) -> dict[str, str]:
    """Compares every weight with the digest in its mask; threads hash at once.

    Returns:
        By mask name, `match`, or `unknown` where the mask stores none for the element type.

    Raises:
        MaskError: if a weight is another than its mask was made for.
    """
    checked: dict[str, str] = {}
    with ThreadPoolExecutor(_WORKERS) as pool:
        for done, verdicts in enumerate(pool.map(_digest, bindings), start=1):
            checked.update(verdicts)
            if progress is not None:
                progress(done, len(bindings), "checking digests")
    return checked


def _digest(binding: Binding) -> dict[str, str]:
    verdicts, start = {}, 0
    for mask in binding.masks:
        stop = start + mask.shape[0]
        verdicts[mask.name] = _verdict_of(binding.site, mask, start, stop)
        start = stop
    return verdicts


def _verdict_of(site: Site, mask: WeightMask, start: int, stop: int) -> str:
    if not mask.digests:
        return "unknown"
    key, found = slice_digest(site, start, stop)
    if mask.digests.get(key, found) != found:
        raise MaskError(
            f"weight '{mask.name}' | differs from the weight its mask was made for (sha256 "
            f"'{key}'); give the masks of this checkpoint, or pass --no-check-digests if the "
            "change was meant"
        )
    return "match" if key in mask.digests else "unknown"
