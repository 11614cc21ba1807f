"""A run's log for TensorBoard, beside log.csv."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from patch_compile._require import require

__all__ = ["board", "check_board"]

Note = Callable[[Mapping[str, Any]], None]


def check_board() -> None:
    """Checks that TensorBoard's files can be written.

    Raises:
        RuntimeUnavailable: if the package is missing.
    """
    require("torch.utils.tensorboard", "tensorboard")


@contextmanager
def board(folder: Path, step: int) -> Iterator[Note]:
    """Yields what writes a row of the log: each number under its name, at the row's step.

    Args:
        folder: of the run; its event files are those of TensorBoard's `--logdir`.
        step: that the run goes on from; later ones of a run before are forgotten.
    """
    writer = require("torch.utils.tensorboard", "tensorboard").SummaryWriter(
        str(folder), purge_step=step + 1
    )

    def note(row: Mapping[str, Any]) -> None:
        for name, value in row.items():
            # A row has no judgement before the first checkpoint.
            if name != "step" and value != "":
                writer.add_scalar(name, value, row["step"])

    try:
        yield note
    finally:
        writer.close()
