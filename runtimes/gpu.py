"""The GPU of this machine, asked of its driver, which loads no CUDA into this process."""

import os
import re
import subprocess
from dataclasses import dataclass

__all__ = ["Gpu", "find_gpus", "process_bytes", "read_gpus", "read_process_bytes"]

_QUERY = ("name", "compute_cap", "driver_version", "memory.total")
_SECONDS = 20.0
# What is no such line, as `[N/A]` for memory, tells of no GPU.
_ROW = re.compile(
    r"(?P<name>[^,]+?) *, *(?P<major>[0-9]{1,3})\.(?P<minor>[0-9]) *, *(?P<driver>[^,]*?) *, *"
    r"(?P<memory>[0-9]{1,9})(\.[0-9]*)?"
)

_PROCESS = re.compile(r"([0-9]{1,9}) *, *([0-9]{1,9})")


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
    """Lists the GPUs that `nvidia-smi` sees and CUDA may use; none where it fails.

    Numbers in CUDA_VISIBLE_DEVICES are taken for nvidia-smi's, as they are where all GPUs are
    alike, or with CUDA_DEVICE_ORDER=PCI_BUS_ID.
    """
    told = _asked(f"--query-gpu=index,uuid,{','.join(_QUERY)}")
    rows = [line.split(", ", 2) for line in told.splitlines() if line.count(", ") > 1]
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = rows if wanted is None else _visible(rows, wanted.split(","))
    return read_gpus("\n".join(row[2] for row in found))


def _visible(rows: list[list[str]], wanted: list[str]) -> list[list[str]]:
    """Takes rows by number or by the start of their UUID; CUDA stops at the first unknown."""
    found = []
    for word in (word.strip() for word in wanted):
        row = next((r for r in rows if word == r[0] or (word and r[1].startswith(word))), None)
        if row is None:
            break
        found.append(row)
    return found


def _asked(query: str) -> str:
    """What `nvidia-smi` answers; nothing where it is missing or fails."""
    command = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=_SECONDS, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def read_gpus(text: str) -> tuple[Gpu, ...]:
    """Returns the GPUs in nvidia-smi's lines, as in `NVIDIA A100, 8.0, 550.54, 81920`."""
    matches = (_ROW.fullmatch(line.strip()) for line in text.splitlines())
    return tuple(
        Gpu(row["name"], int(row["major"] + row["minor"]), row["driver"], int(row["memory"]))
        for row in matches
        if row is not None
    )


def process_bytes(pid: int) -> int | None:
    """Returns what a process holds of all GPUs' memory now; None where the driver is silent.

    In a container the driver may know the process by another number.
    """
    return read_process_bytes(_asked("--query-compute-apps=pid,used_memory"), pid)


def read_process_bytes(text: str, pid: int) -> int | None:
    """Returns the bytes in nvidia-smi's lines, as in `1234, 512`: a process and its MiB."""
    rows = (
        re.fullmatch(r"([0-9]{1,9}) *, *([0-9]{1,9})", x.strip()) for x in text.splitlines()
    )
    held = [int(row[2]) * 2**20 for row in rows if row is not None and int(row[1]) == pid]
    return sum(held) if held else None
