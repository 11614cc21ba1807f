"""Files that appear whole or not at all: written beside their place, then renamed."""

import errno
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from patch_compile.errors import ModelError

if sys.platform != "win32":
    import fcntl

__all__ = [
    "check_file",
    "check_writable",
    "locked_folder",
    "owned_folder",
    "stage_text",
    "staged_folder",
    "write_bytes",
    "write_text",
]

_RANKS = {".onnx": 1, ".json": 2, ".html": 3}
_PREFIX = ".patch-compile-"
# Inside a stage: what the new files replace, until all of them are in their place.
_BEFORE = ".before"
# A stage that nobody holds and that is older, in seconds, was left by a killed process.
_STALE = 60.0
# What writing meets on a full, failing or protected disk, without telling the file.
_DISK = frozenset({errno.ENOSPC, errno.EFBIG, errno.EROFS, errno.EIO, errno.EDQUOT})


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """Yields an empty folder whose files move into `target` if the body succeeds.

    Files that others refer to move first: data, then `.onnx`, then reports. Old files of the
    same names are put aside before, and come back if a file cannot be moved. A process that is
    killed in between leaves no model rather than a graph over the wrong weights, and no report
    of another. Two processes move their files one after the other. A file that moves alone is
    replaced in one step.

    Raises:
        ModelError: if the folder cannot be written, or the disk is full.
    """
    stage = _stage(target)
    try:
        with _held(stage):
            yield stage
            _move(sorted(stage.iterdir(), key=_order), stage, target)
    except OSError as error:
        if error.errno in _DISK or str(error.filename or "").startswith(str(stage)):
            raise _unwritable(target, error) from error
        raise
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _stage(target: Path) -> Path:
    try:
        target.mkdir(parents=True, exist_ok=True)
        _sweep(target)
        return Path(tempfile.mkdtemp(prefix=_PREFIX, dir=target))
    except OSError as error:
        raise _unwritable(target, error) from error


def _unwritable(target: Path, error: OSError) -> ModelError:
    mend = "free some space or choose another" if error.errno in _DISK else "choose another"
    return ModelError(
        f"output folder '{target}' | cannot be written: {error.strerror}; {mend}"
    )


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Marks a stage as in use for as long as this process lives."""
    with ExitStack() as stack:
        with suppress(OSError):
            _lock(folder, stack, wait=True)
        yield


def _sweep(target: Path) -> None:
    """Removes the stages of processes that were killed."""
    for stage in target.glob(f"{_PREFIX}*"):
        with suppress(OSError), ExitStack() as stack:
            if time.time() - stage.stat().st_mtime > _STALE:
                _lock(stage, stack, wait=False)
                shutil.rmtree(stage)


def _lock(place: Path, stack: ExitStack, *, wait: bool) -> None:
    """Locks a folder or file until the stack is left.

    Raises:
        OSError: if it is locked and we do not wait, or where such cannot be locked.
    """
    if sys.platform == "win32":
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
    handle = os.open(place, os.O_RDONLY)
    stack.callback(os.close, handle)
    fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Lets one thread or process at a time read a file of `folder` and write it anew.

    On Windows, and on file systems that lock no folder, it does nothing.
    """
    with ExitStack() as stack:
        with suppress(OSError):
            _lock(folder, stack, wait=True)
        yield


@contextmanager
def owned_folder(folder: Path) -> Iterator[bool]:
    """Makes a folder this process's own, and yields whether it was nobody else's.

    For as long as a run: `locked_folder` may be entered in the body. A `.lock` stays behind,
    and means nothing once its process is gone. On Windows, and on file systems that lock no
    file, nobody owns anything.

    Raises:
        OSError: if the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / ".lock"
    lock.touch()
    with ExitStack() as stack:
        free = True
        try:
            _lock(lock, stack, wait=False)
        except BlockingIOError:
            free = False
        except OSError:
            pass
        yield free


def _move(files: Sequence[Path], stage: Path, target: Path) -> None:
    try:
        if len(files) == 1:
            os.replace(files[0], target / files[0].name)
            return
        with locked_folder(target):
            _replace_all(files, stage / _BEFORE, target)
    except OSError as error:
        raise ModelError(
            f"output '{error.filename2 or error.filename}' | cannot be replaced: "
            f"{error.strerror}; move what is there, or choose another folder"
        ) from error


def _replace_all(files: Sequence[Path], before: Path, target: Path) -> None:
    """Moves all files or none; what refers to others goes first and comes last."""
    before.mkdir()
    aside: list[str] = []
    moved: list[str] = []
    try:
        for file in reversed(files):
            if (target / file.name).exists():
                os.replace(target / file.name, before / file.name)
                aside.append(file.name)
        for file in files:
            os.replace(file, target / file.name)
            moved.append(file.name)
    except BaseException:
        # Also when the user stops us in between.
        for name in reversed(moved):
            (target / name).unlink()
        for name in reversed(aside):
            os.replace(before / name, target / name)
        raise


def _order(file: Path) -> tuple[int, str]:
    return _RANKS.get(file.suffix, 0), file.name


def check_file(path: Path) -> None:
    """Refuses a file that could not be written, and leaves nothing behind.

    Raises:
        ModelError: if there is a folder, or nothing can be written where it would lie.
    """
    if os.path.isdir(path):
        raise ModelError(f"output '{path}' | is a folder; expected the name of a file")
    there = next(place for place in (path.parent, *path.parent.parents) if place.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise ModelError(f"output folder '{path.parent}' | cannot be written; choose another")


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
