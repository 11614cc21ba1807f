"""The name of what a model ran on, for people."""

import platform
from pathlib import Path

from patch_compile.runtimes.gpu import find_gpus

__all__ = ["device_name", "processor"]


def device_name(*, gpu: bool) -> str:
    """Returns the first GPU's name, or the processor's; `unknown` where nobody tells."""
    if not gpu:
        return processor()
    return next((found.name for found in find_gpus()), "unknown")


def processor() -> str:
    """Returns the processor's name, as Linux gives it or else as Python does."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text("utf-8").splitlines() if facts.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or "unknown"
