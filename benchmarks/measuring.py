"""What the benchmarks share: timed processes, the machine's name, result files."""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Run:
    """One process and its children: wall seconds, peak resident bytes, seconds of CPU."""

    seconds: float
    peak: int
    cpu: float


def timed(command: list[str]) -> Run:
    """Runs a command to its end; its exit code must be 0."""
    run, code, _ = attempted(command)
    if code != 0:
        raise SystemExit(f"{' '.join(command)} | exited with {code}")
    return run


def attempted(command: list[str], folder: Path | None = None) -> tuple[Run, int, str]:
    """Runs a command to its end; also returns its exit code and the last line of stderr."""
    with tempfile.TemporaryFile() as log:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log, cwd=folder)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        log.seek(0)
        said = log.read().decode("utf-8", "replace").strip()
    process.returncode = os.waitstatus_to_exitcode(status)
    run = Run(seconds, usage.ru_maxrss * 1024, usage.ru_utime + usage.ru_stime)
    if process.returncode:
        sys.stderr.write(said[-2000:] + "\n")
    return run, process.returncode, said.splitlines()[-1] if said else ""


def machine() -> dict[str, Any]:
    """The processor, its cores and Python's version."""
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }


def write_result(name: str, data: dict[str, Any]) -> None:
    """Writes benchmarks/results/<name>.json with the machine beside the numbers."""
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"machine": machine(), **data}, indent=1) + "\n"
    (RESULTS / f"{name}.json").write_text(text, "utf-8")
