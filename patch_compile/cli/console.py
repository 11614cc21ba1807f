"""How the command line speaks: results to stdout, everything else to stderr."""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from patch_compile.errors import PatchCompileError
from patch_compile.io.slot_writer import Bytes

__all__ = [
    "err",
    "help_console",
    "out",
    "print_json",
    "print_text",
    "progress_bar",
    "say",
    "set_up_logging",
]

# Seconds between lines on long work where no bar can be drawn.
_EVERY = 60.0

# Tables keep their columns when the output is piped to a file or a pager.
_PIPED_WIDTH = 160


class _Console(Console):
    """A console that leaves what cannot be written to `main.run`, which sets the exit code."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Prints as rich does.

        Raises:
            PatchCompileError: if the disk is full, or failing, that stdout goes to.
        """
        try:
            super().print(*objects, **options)
        except BrokenPipeError:
            raise
        except OSError as error:
            name = "stderr" if self.stderr else "stdout"
            raise PatchCompileError(
                f"{name} | cannot be written: {error.strerror}; expected room for what is "
                "printed; free some space, or send it elsewhere"
            ) from error

    def on_broken_pipe(self) -> None:
        """Raises it again, where rich would exit with 1."""
        raise BrokenPipeError


def _console(*, stderr: bool) -> Console:
    """A console that takes no name of a weight for markup or an emoji, as `[b]` or `:x:`."""
    console = _Console(
        stderr=stderr, soft_wrap=True, highlight=False, markup=False, emoji=False
    )
    if not console.is_terminal:
        console.width = _PIPED_WIDTH
    return console


out = _console(stderr=False)
err = _console(stderr=True)
# Help is laid out for the terminal, or 80 columns, as rich and its readers are used to.
help_console = _Console()


def say(text: str) -> None:
    """Tells the user what happens, on stderr."""
    err.print(text)


def print_text(text: str) -> None:
    """Prints exactly this text."""
    out.print(text, end="")


def print_json(data: Mapping[str, Any]) -> None:
    """Prints plain data as JSON."""
    print_text(json.dumps(data, indent=1, allow_nan=False) + "\n")


def set_up_logging(level: str) -> None:
    """Sends log records to stderr; the libraries below only emit them."""
    handler = RichHandler(console=err, show_path=False, show_time=False)
    logging.basicConfig(level=level.upper(), format="%(message)s", handlers=[handler])


class _Amount(ProgressColumn):
    """How much is done: bytes and their speed where bytes are counted, else a percentage."""

    def __init__(self) -> None:
        super().__init__()
        self._size, self._speed = DownloadColumn(), TransferSpeedColumn()

    def render(self, task: Task) -> Text:
        """Draws it."""
        if isinstance(task.total, Bytes):
            return self._size.render(task).append(" ").append(self._speed.render(task))
        return Text(f"{task.percentage:>3.0f}%")


class _Lines:
    """Tells of long work in a log: a line a minute, and none of what takes less."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._begun: dict[str, tuple[float, int]] = {}

    def __call__(self, done: int, total: int, what: str) -> None:
        now = time.monotonic()
        begun, first = self._begun.setdefault(what.partition(",")[0], (now, done))
        if now - self._last < _EVERY:
            return
        self._last = now
        rate = (done - first) / (now - begun) if done > first else 0.0
        left = f", {timedelta(seconds=round((total - done) / rate))} to go" if rate else ""
        say(f"{what}: {done / max(total, 1):.0%}{left}")


@contextmanager
def progress_bar() -> Iterator[Callable[[int, int, str], None]]:
    """Yields a `progress(done, total, what)` that draws a bar with an ETA on a terminal.

    Where both are `Bytes` it tells sizes and a speed.

    What comes after a comma in `what` may change while a bar goes on. Where stderr is no
    terminal it says a line a minute.
    """
    if not err.is_terminal:
        yield _Lines()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        _Amount(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def update(done: int, total: int, what: str) -> None:
            stage = what.partition(",")[0]
            if stage not in tasks:
                tasks[stage] = bar.add_task(what, total=total)
            bar.update(tasks[stage], completed=done, total=total, description=what)

        yield update
