"""Several gloo processes on this machine that run one function of a test."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.multiprocessing.spawn import start_processes

PROCESSES = 2


def together(work: Callable[..., None], folder: Path, *arguments: Any) -> None:
    """Runs `work(rank, folder, *arguments)` in each process; an error in one is raised.

    Args:
        work: of a module, so that a fresh interpreter finds it.
        folder: for what it writes, and for the file that the processes meet over.
        arguments: pickled.
    """
    start_processes(_process, (work, folder, arguments), PROCESSES, start_method="spawn")


def _process(
    rank: int, work: Callable[..., None], folder: Path, arguments: tuple[Any, ...]
) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": str(PROCESSES), "LOCAL_WORLD_SIZE": str(PROCESSES)}
    torch.set_num_threads(1)
    # A file, where a port that was free may be taken by now.
    meeting = (folder / "meeting").as_uri()
    distributed.init_process_group(
        "gloo", init_method=meeting, rank=rank, world_size=PROCESSES
    )
    try:
        work(rank, folder, *arguments)
    finally:
        distributed.destroy_process_group()
