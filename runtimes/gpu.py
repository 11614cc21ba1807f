"""The GPU of this machine, asked of its driver, which loads no CUDA into this process."""

import re
import subprocess
from dataclasses import dataclass

__all__ = ["Gpu", "find_gpus", "read_gpus"]

_QUERY = ("name", "compute_cap", "driver_version", "memory.total")
_SECONDS = 20.0
# What is no such line, as `[N/A]` for memory, tells of no GPU.
_ROW = re.compile(
    r"(?P<name>[^,]+?) *, *(?P<major>[0-9]{1,3})\.(?P<minor>[0-9]) *, *(?P<driver>[^,]*?) *, *"
    r"(?P<memory>[0-9]{1,9})(\.[0-9]*)?"
)


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        name: as its driver gives it.
        sm: compute capability, as in 86.
        driver: version of the driver.
        memory: MiB.
    """

    name: str
    sm: int
    driver: str
    memory: int


def find_gpus() -> tuple[Gpu, ...]:
    """Lists the GPUs that `nvidia-smi` sees; none where it is missing or fails."""
    command = [
        "nvidia-smi",
        f"--query-gpu={','.join(_QUERY)}",
        "--format=csv,noheader,nounits",
    ]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    return read_gpus(done.stdout)


def read_gpus(text: str) -> tuple[Gpu, ...]:
    """Returns the GPUs in nvidia-smi's lines, as in `NVIDIA A100, 8.0, 550.54, 81920`."""
    matches = (_ROW.fullmatch(line.strip()) for line in text.splitlines())
    return tuple(
        Gpu(row["name"], int(row["major"] + row["minor"]), row["driver"], int(row["memory"]))
        for row in matches
        if row is not None
    )
