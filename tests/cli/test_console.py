"""Results on stdout, everything else on stderr, bars on a terminal only."""

import io
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Progress

from patch_compile.cli import console
from tests.cli.conftest import Job

COMMAND = [sys.executable, "-m", "patch_compile"]


def _arguments(job: Job, *more: str) -> list[str]:
    return [*COMMAND, str(job.model), "--tiles", str(job.masks), "--json", *more]


def test_a_bar_is_drawn_on_a_terminal_and_only_on_stderr(job: Job) -> None:
    terminal, end = pty.openpty()
    arguments = _arguments(job, "-o", str(job.out))
    try:
        done = subprocess.run(
            arguments, stdout=subprocess.PIPE, stderr=end, check=True, timeout=60
        )
    finally:
        os.close(end)
    drawn = _drain(terminal)
    assert "writing compiled.onnx.data" in drawn
    assert re.search(r"4\.1/4\.1 kB", drawn)
    assert json.loads(done.stdout)["version"] == 1


def _drain(terminal: int) -> str:
    said = b""
    try:
        while block := os.read(terminal, 65536):
            said += block
    except OSError:
        # Linux reports the far end's closing as an error.
        pass
    finally:
        os.close(terminal)
    return said.decode()


@pytest.mark.parametrize("columns", ["40", "200"])
def test_piped_output_has_no_bar_and_no_colour(job: Job, columns: str) -> None:
    done = subprocess.run(
        [*COMMAND, str(job.model), "--tiles", str(job.masks), "-o", str(job.out)],
        capture_output=True,
        check=True,
        text=True,
        timeout=60,
        env={**os.environ, "COLUMNS": columns},
    )
    assert done.stderr == f"wrote {job.out / 'compiled.onnx'}\n"
    assert "\x1b" not in done.stdout
    # The table keeps its columns, whatever the terminal's width.
    assert "a.weight  columns" in done.stdout
    assert "MACs kept" in done.stdout


def test_logs_go_to_stderr(job: Job) -> None:
    code = (
        "import logging, sys; from patch_compile.cli.main import run;"
        "code = run(sys.argv[1:]); logging.getLogger('x').debug('a note'); sys.exit(code)"
    )
    arguments = _arguments(job, "--dry-run", "--log-level", "debug")[3:]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        check=True,
        text=True,
        timeout=60,
    )
    assert json.loads(done.stdout)["version"] == 1
    assert "DEBUG" in done.stderr
    assert "a note" in done.stderr


PRINTING: dict[str, tuple[str, ...]] = {
    "help": ("--help",),
    "version": ("--version",),
    "table": ("inspect", "MODEL"),
    "json": ("inspect", "MODEL", "--json"),
    "main job": ("MODEL", "--tiles", "MASKS", "-o", "OUT"),
}


def _printed(job: Job, what: str, stdout: Any) -> "subprocess.CompletedProcess[str]":
    words = {"MODEL": str(job.model), "MASKS": str(job.masks), "OUT": str(job.out)}
    return subprocess.run(
        [*COMMAND, *(words.get(word, word) for word in PRINTING[what])],
        stdout=stdout,
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
        text=True,
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("what", PRINTING)
def test_a_full_disk_under_stdout_is_one_line(job: Job, what: str) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = _printed(job, what, full)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("patch-compile: stdout | cannot be written")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("what", ["help", "json"])
def test_a_reader_that_leaves_early_is_no_error(job: Job, what: str) -> None:
    end, stdout = os.pipe()
    os.close(end)
    try:
        done = _printed(job, what, stdout)
    finally:
        os.close(stdout)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_bar_goes_on_while_its_text_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(console, "err", Console(file=terminal, force_terminal=True))
    begun: list[str] = []
    add = Progress.add_task

    def noted(bar: Progress, what: str, **options: Any) -> Any:
        begun.append(what)
        return add(bar, what, **options)

    monkeypatch.setattr(Progress, "add_task", noted)
    with console.progress_bar() as progress:
        progress(1, 2, "learning, loss 2.5")
        progress(2, 2, "learning, loss 1.5")
    assert begun == ["learning, loss 2.5"]
    assert "loss 1.5" in terminal.getvalue()


def test_a_log_has_a_line_a_minute_and_how_long_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = io.StringIO()
    clock = iter([0.0, 10.0, 40.0, 70.0, 100.0, 130.0, 200.0])
    monkeypatch.setattr(console, "err", Console(file=log, width=160))
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with console.progress_bar() as progress:
        progress(0, 20, "learning, loss 2.5")
        progress(1, 20, "learning, loss 2.0")
        progress(2, 20, "learning, loss 1.5")
        progress(3, 20, "learning, loss 1.0")
        progress(4, 20, "learning, loss 0.5")
        progress(0, 7, "exporting")
    assert log.getvalue().splitlines() == [
        "learning, loss 1.5: 10%, 0:09:00 to go",
        "learning, loss 0.5: 20%, 0:08:00 to go",
        "exporting: 0%",
    ]
