"""What no reader may do, whatever it is given.

An audit hook sees every file that Python opens and every pickle and program that it starts;
a limit on memory and a clock end what grows or hangs.
"""

import os
import resource
import signal
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

__all__ = ["Forbidden", "bounded", "watched"]

# Native code may start programs of its own; these are what a file could make Python do.
_CODE = frozenset(
    {"pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen"}
)
_SYSTEM = ("/proc", "/sys", "/dev/null", "/dev/urandom", "/etc/localtime", "/usr", "/lib")


class Forbidden(BaseException):
    """A reader left its folder, ran code, or went on for too long.

    No subclass of Exception: no reader's `except` may hide it.
    """


class _Watch:
    """Where files may be opened; nothing is watched while `allowed` is empty."""

    def __init__(self) -> None:
        self.allowed: tuple[str, ...] = ()
        self.installed = False

    def hook(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self.allowed:
            return
        if event in _CODE:
            raise Forbidden(f"ran code: {event} {arguments}")
        if event == "open" and isinstance(arguments[0], str | bytes):
            self._check(os.fsdecode(arguments[0]))

    def _check(self, name: str) -> None:
        path = os.path.realpath(name)
        if not any(path == root or path.startswith(f"{root}/") for root in self.allowed):
            raise Forbidden(f"opened '{name}' outside of its folder")


_WATCH = _Watch()


@contextmanager
def watched(folder: Path) -> Iterator[None]:
    """Raises `Forbidden` in the body where it opens a file outside of `folder` or runs code.

    Python's own files, those of packages and of this repository are no secrets.
    """
    if not _WATCH.installed:
        sys.addaudithook(_WATCH.hook)
        _WATCH.installed = True
    installed = {Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")}
    own = Path(__file__).parents[1]
    roots = {folder, own, Path(sys.base_prefix), *installed}
    before = _WATCH.allowed
    _WATCH.allowed = (*sorted({os.path.realpath(root) for root in roots}), *_SYSTEM)
    try:
        yield
    finally:
        _WATCH.allowed = before


@contextmanager
def bounded(seconds: int, more_bytes: int) -> Iterator[None]:
    """Ends the body after some time, and lets the process grow by so many bytes alone."""

    def ring(_: int, __: FrameType | None) -> None:
        raise Forbidden(f"went on for more than {seconds} seconds")

    before = signal.signal(signal.SIGALRM, ring)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + more_bytes, hard))
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    return pages * resource.getpagesize()
