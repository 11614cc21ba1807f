"""Builds one TensorRT-RTX engine: `python -m patch_compile.runtimes._rtx_worker <folder>`.

It runs in a process of its own because TensorRT-RTX is native code that can crash, and that
fails differently after a first failure. Its log goes to standard error.
"""

# tensorrt_rtx takes its names from a native module without stubs.
# pyright: reportAttributeAccessIssue=false

import sys
from pathlib import Path
from typing import Any

import tensorrt_rtx as trt

from patch_compile.errors import ModelError, PatchCompileError, RecipeError
from patch_compile.runtimes._rtx_job import (
    Job,
    Outcome,
    read_job,
    write_outcome,
    write_progress,
)
from patch_compile.runtimes.profiles import NetworkInput, profile_shapes

__all__ = ["main"]

# Without a GPU every refused layer also says this, which is not why it was refused.
_NOISE = "CUDA driver version is insufficient"
_FRAMES = "ModelImporter.cpp"
_MOST_ERRORS = 5


class _Log(trt.ILogger):  # type: ignore[misc]  # its base is untyped
    """Writes every message to standard error and remembers the errors."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.errors: list[str] = []

    def log(self, severity: Any, message: str) -> None:
        """Is called by TensorRT-RTX."""
        sys.stderr.write(f"{severity.name}: {message}\n")
        sys.stderr.flush()
        line = _line(message)
        if line and severity <= trt.ILogger.ERROR and not line.startswith(_FRAMES):
            self.errors.append(line)


class _Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # its base is untyped
    """Counts the steps of the outermost phase and names the innermost."""

    def __init__(self, folder: Path) -> None:
        trt.IProgressMonitor.__init__(self)
        self._folder = folder
        self._root = ""
        self._done = 0
        self._total = 0

    def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
        """Is called by TensorRT-RTX."""
        if parent is None:
            self._root, self._done, self._total = phase, 0, steps
        write_progress(self._folder, self._done, self._total, phase)

    def step_complete(self, phase: str, step: int) -> bool:
        """Is called by TensorRT-RTX; returns that the build goes on."""
        if phase == self._root:
            self._done = step + 1
            write_progress(self._folder, self._done, self._total, phase)
        return True

    def phase_finish(self, phase: str) -> None:
        """Is called by TensorRT-RTX."""
        if phase == self._root:
            write_progress(self._folder, self._total, self._total, phase)


def main(folder: Path) -> None:
    """Does the job in `folder` and leaves the outcome, or a user's error, there."""
    try:
        write_outcome(folder, _build(read_job(folder), folder))
    except PatchCompileError as error:
        write_outcome(folder, error)


def _build(job: Job, folder: Path) -> Outcome:
    # Every object stays named until the end: TensorRT-RTX does not keep what it needs alive,
    # and crashes.
    log, monitor = _Log(), _Monitor(folder)
    builder = trt.Builder(log)
    config = builder.create_builder_config()
    config.progress_monitor = monitor
    _target(config, job.sm)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    _parse(parser, log, job.model)
    if job.sparse:
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    shapes = _add_profile(builder, config, network, job)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ModelError(f"model '{job.model}' | {_failure(log, job.sm)}")
    Path(job.engine).write_bytes(memoryview(plan))
    return Outcome(trt.__version__, _flags(config), shapes)


def _parse(parser: Any, log: _Log, model: str) -> None:
    if parser.parse_from_file(model):
        return
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    said = [_line(error.desc()) for error in errors]
    # The parser's own words leave out such causes as a missing data file.
    causes = [line for line in log.errors if not any(line in s or s in line for s in said)]
    lines = (causes[:1] + [_parser_error(error) for error in errors])[:_MOST_ERRORS]
    raise ModelError(
        f"model '{model}' | TensorRT-RTX cannot parse it: {'; '.join(lines)}; export it "
        "with operators and types that TensorRT-RTX has, and dense weights"
    )


def _parser_error(error: Any) -> str:
    reason = error.code().name.replace("_", " ").lower()
    description = _line(error.desc())
    # Operators that are known but not supported come with the words of a failed check.
    text = reason if description in ("", "false") else f"{reason}, {description}"
    if error.node() < 0:
        return text
    return f"node '{error.node_name()}' ({error.node_operator()}): {text}"


def _line(message: str) -> str:
    lines = [line for line in message.splitlines() if _NOISE not in line]
    return " ".join(" ".join(lines).split())


def _target(config: Any, sm: tuple[int, ...]) -> None:
    known = trt.ComputeCapability.__members__
    unknown = [number for number in sm if f"SM{number}" not in known]
    if unknown:
        names = ", ".join(name[2:] for name in known if name.startswith("SM"))
        raise RecipeError(
            f"sm | is {unknown[0]}; TensorRT-RTX {trt.__version__} builds for {names}; "
            "choose among them"
        )
    config.num_compute_capabilities = len(sm)
    for index, number in enumerate(sm):
        config.set_compute_capability(known[f"SM{number}"], index)


def _add_profile(
    builder: Any, config: Any, network: Any, job: Job
) -> dict[str, tuple[tuple[int, ...], ...]]:
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    inputs = [NetworkInput(t.name, tuple(t.shape), _symbols(t)) for t in tensors]
    shapes = profile_shapes(inputs, job.batch, job.sequence)
    if not shapes:
        return shapes
    profile = builder.create_optimization_profile()
    for name, (least, best, most) in shapes.items():
        profile.set_shape(name, least, best, most)
    if config.add_optimization_profile(profile) < 0:
        raise RecipeError(
            f"batch and sequence | give the shapes {shapes}, which TensorRT-RTX refuses; "
            "choose ranges that fit the model"
        )
    return shapes


def _symbols(tensor: Any) -> tuple[str | None, ...]:
    return tuple(tensor.get_dimension_name(axis) or None for axis in range(len(tensor.shape)))


def _failure(log: _Log, sm: tuple[int, ...]) -> str:
    target = ", ".join(f"SM{number}" for number in sm) or "any GPU"
    reason = log.errors[0] if log.errors else "the log gives no reason"
    return (
        f"TensorRT-RTX cannot build it for {target}: {reason}; change the model or the "
        "architecture"
    )


def _flags(config: Any) -> tuple[str, ...]:
    members = trt.BuilderFlag.__members__
    return tuple(name for name, flag in members.items() if config.get_flag(flag))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
