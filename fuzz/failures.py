"""Trouble with files at every moment of a command: an error, or the end of the process.

An audit hook counts what is done to the files of one folder, and at a given number raises an
error or kills the process. So each place where a run can be cut short is tried, not some that
a clock happens to hit.
"""

import io
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

__all__ = ["Ended", "contents", "crashes", "failures", "file_limit", "run_quietly"]

_EVENTS = frozenset({"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"})


@dataclass
class _Saboteur:
    """Counts the events on files of `folder`, and strikes at one of them."""

    folder: str = ""
    at: int = 0
    strike: Callable[[str], None] = field(default=lambda _: None)
    seen: int = 0
    installed: bool = False

    def hook(self, event: str, arguments: tuple[object, ...]) -> None:
        if (
            not self.folder
            or event not in _EVENTS
            or not isinstance(arguments[0], str | bytes)
        ):
            return
        if event == "open" and not _writes(arguments[2]):
            return
        path = os.fsdecode(arguments[0])
        if path.startswith(self.folder):
            self.seen += 1
            if self.seen == self.at:
                self.strike(path)

    @contextmanager
    def watching(self, folder: Path, at: int, strike: Callable[[str], None]) -> Iterator[None]:
        if not self.installed:
            sys.addaudithook(self.hook)
            self.installed = True
        self.at, self.strike, self.seen, self.folder = at, strike, 0, str(folder)
        try:
            yield
        finally:
            self.folder = ""


_SABOTEUR = _Saboteur()


def _writes(flags: object) -> bool:
    return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR))


@dataclass(frozen=True)
class Ended:
    """How a command ended that met trouble at its n-th step.

    Attributes:
        step: the n.
        code: exit code; negative for a signal.
        err: what it said.
        files: bytes by name afterwards; stages that were left are not among them.
    """

    step: int
    code: int
    err: str
    files: dict[str, bytes]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by its relative name, but for stages of killed processes."""
    if not folder.is_dir():
        return {}
    names = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    kept = [name for name in names if not str(name).startswith(".patch-compile-")]
    return {str(name): (folder / name).read_bytes() for name in kept}


def run_quietly(arguments: Sequence[str]) -> tuple[int, str]:
    """Runs a command line in this process: its exit code and what it said."""
    # Here, so that a process that forks has loaded nothing that starts threads.
    from patch_compile.cli.main import run

    err = io.StringIO()
    with redirect_stdout(io.StringIO()), redirect_stderr(err):
        code = run(list(arguments))
    return code, err.getvalue()


def failures(
    fresh: Callable[[], Path], arguments: Callable[[Path], list[str]], number: int
) -> Iterator[Ended]:
    """Lets each step on the files of a folder fail in turn, until a run meets no failure.

    Args:
        fresh: makes the folder anew and returns it.
        arguments: of the command, by that folder.
        number: of the error, as `errno.ENOSPC`.
    """

    def strike(path: str) -> None:
        raise OSError(number, os.strerror(number), path)

    for step in count(1):
        folder = fresh()
        with _SABOTEUR.watching(folder, step, strike):
            code, err = run_quietly(arguments(folder))
            struck = _SABOTEUR.seen >= step
        if not struck:
            return
        yield Ended(step, code, err, contents(folder))


def crashes(
    fresh: Callable[[], Path], arguments: Callable[[Path], list[str]]
) -> Iterator[Ended]:
    """Kills the command before each step on the files of a folder, until one run is whole.

    The caller's process must have one thread alone, for it forks.
    """

    def strike(_: str) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    for step in count(1):
        folder = fresh()
        child = os.fork()
        if child == 0:
            with _SABOTEUR.watching(folder, step, strike):
                code, _ = run_quietly(arguments(folder))
            os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code >= 0:
            assert code == 0, code
            return
        yield Ended(step, code, "", contents(folder))


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """In the body no file may grow beyond so many bytes: writing on fails, as on a full disk.

    Python ignores the signal that would end the process.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
