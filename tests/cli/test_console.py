"""Results on stdout, everything else on stderr, bars on a terminal only."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

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
    assert "100%" in drawn
    assert "checking digests" in drawn
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


def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path, job: Job) -> None:
    end, stdout = os.pipe()
    os.close(end)
    try:
        done = subprocess.run(
            [*COMMAND, "inspect", str(job.model), "--json"],
            stdout=stdout,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    finally:
        os.close(stdout)
    assert (done.returncode, done.stderr) == (0, b"")
