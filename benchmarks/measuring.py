"""What the benchmarks share: timed processes, the machine's name, result files."""

import json
import os
import platform
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Run:
    """One process: wall seconds and peak resident bytes."""

    seconds: float
    peak: int


def timed(command: list[str]) -> Run:
    """Runs a command to its end; its exit code must be 0."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)} | exited with {process.returncode}")
    return Run(seconds, usage.ru_maxrss * 1024)


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
