"""Files that appear whole or not at all: written beside their place, then renamed."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from patch_compile.errors import ModelError

if sys.platform != "win32":
    import fcntl

__all__ = [
    "check_writable",
    "locked_folder",
    "stage_text",
    "staged_folder",
    "write_bytes",
    "write_text",
]

_RANKS = {".onnx": 1, ".json": 2, ".html": 3}


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """Yields an empty folder whose files move into `target` if the body succeeds.

    Files that others refer to move first: data, then `.onnx`, then reports. Old `.onnx`,
    `.json` and `.html` files of the same names go before anything is replaced, so that a crash
    in between leaves no model rather than a graph over the wrong weights, and no report of
    another. A file that moves alone is replaced in one step.
    """
    stage = _stage(target)
    try:
        yield stage
        _move(sorted(stage.iterdir(), key=_order), target)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _stage(target: Path) -> Path:
    try:
        target.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=".patch-compile-", dir=target))
    except OSError as error:
        raise ModelError(
            f"output folder '{target}' | cannot be written: {error.strerror}; choose another"
        ) from error


def _move(files: Sequence[Path], target: Path) -> None:
    try:
        for file in files:
            if len(files) > 1 and file.suffix in _RANKS:
                (target / file.name).unlink(missing_ok=True)
        for file in files:
            os.replace(file, target / file.name)
    except OSError as error:
        raise ModelError(
            f"output '{error.filename2 or error.filename}' | cannot be replaced: "
            f"{error.strerror}; move what is there, or choose another folder"
        ) from error


def _order(file: Path) -> tuple[int, str]:
    return _RANKS.get(file.suffix, 0), file.name


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Lets one thread or process at a time read a file of `folder` and write it anew.

    On Windows, and on file systems that lock no folder, it does nothing.
    """
    if sys.platform == "win32":
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def check_writable(folder: Path) -> None:
    """Makes `folder` if it is missing, and refuses one that cannot be written.

    For what is written at the end of long work: the hour is not lost.

    Raises:
        ModelError: if nothing can be written there.
    """
    with staged_folder(folder):
        pass


def write_bytes(path: Path, data: bytes) -> None:
    """Replaces `path` by `data` in one step."""
    with staged_folder(path.parent) as stage:
        _stage_bytes(stage / path.name, data)


def stage_text(path: Path, text: str) -> None:
    """Writes UTF-8 `text` into a staged folder.

    Raises:
        ModelError: if the disk is full.
    """
    _stage_bytes(path, text.encode())


def _stage_bytes(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise ModelError(
            f"output '{path.name}' | cannot be written: {error.strerror}; free "
            f"{len(data) / 1e6:.1f} MB or choose another folder"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Replaces `path` by UTF-8 `text` in one step."""
    write_bytes(path, text.encode())
