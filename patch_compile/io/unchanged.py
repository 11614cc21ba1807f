"""Files that are read while others are written must stay what they were."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from patch_compile.errors import ModelError

__all__ = ["Signature", "check_unchanged", "signature", "signatures"]

# Device, file, bytes and nanoseconds of the last change.
Signature = tuple[int, int, int, int]


def signature(path: Path) -> Signature:
    """Returns what changes when a file is replaced or written to; zeros if it is gone."""
    try:
        found = os.stat(path)
    except OSError:
        return (0, 0, 0, 0)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def signatures(paths: Iterable[Path]) -> dict[Path, Signature]:
    """Returns the signature of every file."""
    return {path: signature(path) for path in paths}


def check_unchanged(before: Mapping[Path, Signature]) -> None:
    """Refuses to go on with files of which some were replaced since they were first read.

    Raises:
        ModelError: if one has another signature now.
    """
    changed = sorted(str(path) for path, was in before.items() if signature(path) != was)
    if changed:
        raise ModelError(
            f"input '{changed[0]}' | was changed while it was read; nothing was written; run "
            "again when it is whole"
        )
