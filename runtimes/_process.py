"""Native code in a process of its own: a crash or a hang becomes one line of error."""

import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from patch_compile.errors import ModelError, RuntimeUnavailable

__all__ = ["death", "run_logged", "tail"]

_POLL = 0.1
_LAST_LINES = 3
# The tail of a log that may be gigabytes long.
_TAIL_BYTES = 65_536


def run_logged(
    command: Sequence[str],
    log: Path,
    *,
    subject: str,
    timeout: float,
    show: Callable[[], None],
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> int:
    """Runs a command with all of its output in a file, and returns its exit code.

    Args:
        command: the program and its arguments.
        log: file to write.
        subject: opens the error message, as in "TensorRT-RTX".
        timeout: seconds before it is stopped.
        show: called ten times a second, and at the end.
        cwd: folder to run in.
        environment: variables of the process; by default ours.

    Raises:
        ModelError: if the log cannot be written.
        RuntimeUnavailable: if it cannot start or takes too long.
    """
    try:
        with (
            log.open("wb") as output,
            subprocess.Popen(
                command, cwd=cwd, env=environment, stdout=output, stderr=output
            ) as process,
        ):
            try:
                return _wait(process, timeout, show)
            finally:
                process.kill()
    except subprocess.TimeoutExpired as error:
        raise RuntimeUnavailable(
            f"{subject} | did not finish in {timeout} seconds and was stopped; give a longer "
            f"time-out; last words: {tail(log)}; full log: '{log}'"
        ) from error
    except OSError as error:
        if error.filename == str(log):
            raise ModelError(
                f"log '{log}' | cannot be written: {error.strerror}; free some space or "
                "choose another folder"
            ) from error
        raise RuntimeUnavailable(
            f"{subject} | cannot run '{command[0]}': {error.strerror}; check its path and "
            "permissions"
        ) from error


def _wait(process: subprocess.Popen[bytes], timeout: float, show: Callable[[], None]) -> int:
    """Returns the exit code; raises TimeoutExpired when the time is over."""
    deadline = time.monotonic() + timeout
    while True:
        left = max(0.0, deadline - time.monotonic())
        try:
            code = process.wait(min(_POLL, left))
        except subprocess.TimeoutExpired:
            show()
            if left <= _POLL:
                raise
        else:
            show()
            return code


def death(code: int) -> str:
    """Says how a process ended that should not have."""
    if code >= 0:
        return f"failed with exit code {code}"
    name = signal.Signals(-code).name
    hint = ", often for lack of memory" if name == "SIGKILL" else ""
    return f"was ended by {name}{hint}"


def tail(log: Path) -> str:
    """Returns the last lines of a log on one line."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        lines = file.read().decode("utf-8", "replace").split("\n")
    said = [" ".join(line.split()) for line in lines if line.strip()]
    return " / ".join(said[-_LAST_LINES:]) or "none"
