"""What goes between a builder and its worker process: files in one folder.

The parent writes `job.json`; the worker appends to `progress` and writes `result.json`. A
worker that dies leaves no result.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from patch_compile.errors import ModelError, PatchCompileError, RecipeError
from patch_compile.runtimes.profiles import Range

__all__ = [
    "Job",
    "Outcome",
    "read_job",
    "read_outcome",
    "read_progress",
    "write_job",
    "write_outcome",
    "write_progress",
]

_ERRORS = {kind.__name__: kind for kind in (ModelError, RecipeError)}


@dataclass(frozen=True)
class Job:
    """One build. What is not described here is as in `BuildRecipe`.

    Attributes:
        package: `tensorrt` or `tensorrt_rtx`.
        model: absolute path of the .onnx file.
        engine: absolute path to write.
        layers: absolute path for what the engine tells of its layers; empty asks nothing,
            as asking needs the GPU.
        sm: architectures, as in 86; empty for the GPU at hand.
        timing_cache: absolute path; empty for none.
    """

    package: str
    model: str
    engine: str
    layers: str = ""
    sm: tuple[int, ...] = ()
    sparse: bool = True
    strict_nans: bool = False
    refit: bool = False
    precision: tuple[str, ...] = ()
    batch: Range = (1, 1, 1)
    sequence: Range = (1, 1, 1)
    timing_cache: str = ""
    optimization_level: int | None = None
    workspace: int | None = None
    hardware: str = "same"


@dataclass(frozen=True)
class Outcome:
    """What a finished build tells beside the engine.

    Attributes:
        version: of the builder.
        flags: names of the builder flags that were set, and of what else was chosen.
        profiles: least, best and most shape by input name.
        symbols: size of each named dynamic axis at the best point.
        context: bytes on the GPU that one execution context takes, as the engine says; None
            where no GPU could load it.
    """

    version: str
    flags: tuple[str, ...]
    profiles: dict[str, tuple[tuple[int, ...], ...]]
    symbols: dict[str, int]
    context: int | None = None


def write_job(folder: Path, job: Job) -> None:
    """Leaves the job for the worker."""
    _write(folder / "job.json", asdict(job))


def read_job(folder: Path) -> Job:
    """Returns the job the parent left."""
    fields = _read(folder / "job.json")
    for name in ("sm", "precision", "batch", "sequence"):
        fields[name] = tuple(fields[name])
    return Job(**fields)


def write_outcome(folder: Path, outcome: Outcome | PatchCompileError) -> None:
    """Leaves the outcome, or the error, for the parent."""
    if isinstance(outcome, PatchCompileError):
        _write(folder / "result.json", {type(outcome).__name__: str(outcome)})
    else:
        _write(folder / "result.json", asdict(outcome))


def read_outcome(folder: Path) -> Outcome | PatchCompileError | None:
    """Returns what the worker left; None if it died before."""
    if not (folder / "result.json").is_file():
        return None
    fields = _read(folder / "result.json")
    for name, kind in _ERRORS.items():
        if name in fields:
            return kind(fields[name])
    profiles = {k: tuple(tuple(s) for s in v) for k, v in fields["profiles"].items()}
    return Outcome(
        fields["version"],
        tuple(fields["flags"]),
        profiles,
        fields["symbols"],
        fields["context"],
    )


def write_progress(folder: Path, done: int, total: int, what: str) -> None:
    """Appends one line for the parent's progress bar."""
    with (folder / "progress").open("a", encoding="utf-8") as file:
        file.write(f"{done}\t{total}\t{what}\n")


def read_progress(folder: Path) -> tuple[int, int, str] | None:
    """Returns the newest whole line of progress; None before the first."""
    file = folder / "progress"
    lines = file.read_text(encoding="utf-8").split("\n") if file.is_file() else []
    # What follows the last line break is not written to its end yet.
    if len(lines) < 2:
        return None
    done, total, what = lines[-2].split("\t", 2)
    return int(done), int(total), what


def _write(file: Path, fields: dict[str, Any]) -> None:
    # Renamed, so that a worker killed while writing leaves no half a result.
    part = file.with_suffix(".part")
    part.write_text(json.dumps(fields), encoding="utf-8")
    part.replace(file)


def _read(file: Path) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return fields
