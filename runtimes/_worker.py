"""Builds one engine: `python -m patch_compile.runtimes._worker <folder>`.

It runs in a process of its own because TensorRT is native code that can crash, and that fails
differently after a first failure. Its log goes to standard error. TensorRT 10, 11 and RTX
share one interface but for what this file asks for by name.
"""

import importlib
import os
import sys
from pathlib import Path
from typing import Any

from patch_compile.errors import ModelError, PatchCompileError, RecipeError
from patch_compile.runtimes._job import (
    Job,
    Outcome,
    read_job,
    write_outcome,
    write_progress,
)
from patch_compile.runtimes.profiles import NetworkInput, profile_shapes, symbol_sizes

__all__ = ["main"]

# Without a GPU every refused layer also says this, which is not why it was refused.
_NOISE = "CUDA driver version is insufficient"
_FRAMES = "ModelImporter.cpp"
_MOST_ERRORS = 5

_NAMES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
_HARDWARE = {"ampere-plus": "AMPERE_PLUS", "same-capability": "SAME_COMPUTE_CAPABILITY"}


def _logger(trt: Any) -> Any:
    """A logger that writes every message to standard error and remembers the errors."""

    class Log(trt.ILogger):  # type: ignore[misc]  # its base is untyped
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            sys.stderr.write(f"{severity.name}: {message}\n")
            sys.stderr.flush()
            line = _line(message)
            if line and severity <= trt.ILogger.ERROR and not line.startswith(_FRAMES):
                self.errors.append(line)

    return Log()


def _monitor(trt: Any, folder: Path) -> Any:
    """A monitor that counts the steps of the outermost phase and names the innermost."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # its base is untyped
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._root = ""
            self._done = 0
            self._total = 0

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            if parent is None:
                self._root, self._done, self._total = phase, 0, steps
            write_progress(folder, self._done, self._total, phase)

        def step_complete(self, phase: str, step: int) -> bool:
            if phase == self._root:
                self._done = step + 1
                write_progress(folder, self._done, self._total, phase)
            return True

        def phase_finish(self, phase: str) -> None:
            if phase == self._root:
                write_progress(folder, self._total, self._total, phase)

    return Monitor()


def main(folder: Path) -> None:
    """Does the job in `folder` and leaves the outcome, or a user's error, there."""
    job = read_job(folder)
    trt = importlib.import_module(job.package)
    try:
        write_outcome(folder, _build(trt, job, folder))
    except PatchCompileError as error:
        write_outcome(folder, error)


def _build(trt: Any, job: Job, folder: Path) -> Outcome:
    # Every object stays named until the end: TensorRT does not keep what it needs alive, and
    # crashes.
    log, monitor = _logger(trt), _monitor(trt, folder)
    builder = trt.Builder(log)
    config = builder.create_builder_config()
    config.progress_monitor = monitor
    _target(trt, config, job.sm)
    network = builder.create_network(_network_flags(trt, job))
    parser = trt.OnnxParser(network, log)
    _parse(parser, log, job)
    _configure(trt, config, job)
    cache = _open_cache(config, job)
    inputs = _inputs(network)
    shapes = _add_profile(builder, config, inputs, job)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ModelError(f"model '{job.model}' | {_failure(log, job)}")
    Path(job.engine).write_bytes(memoryview(plan))
    if cache is not None:
        _keep(Path(job.timing_cache), memoryview(cache.serialize()))
    context = _inspect(trt, log, plan, Path(job.layers)) if job.layers else None
    flags = _flags(trt, config, job)
    return Outcome(trt.__version__, flags, shapes, symbol_sizes(inputs, shapes), context)


def _network_flags(trt: Any, job: Job) -> int:
    """Strongly typed wherever that is a choice; TensorRT 11 leaves none."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None or job.precision else 1 << int(flag)


def _configure(trt: Any, config: Any, job: Job) -> None:
    wanted = {"SPARSE_WEIGHTS": job.sparse, "STRICT_NANS": job.strict_nans, "REFIT": job.refit}
    names = [name for name, asked in wanted.items() if asked]
    known = trt.BuilderFlag.__members__
    for name in [*names, *(precision.upper() for precision in job.precision)]:
        if name not in known:
            raise RecipeError(_no_such_flag(trt, job, name))
        config.set_flag(known[name])
    # Without it the inspector names no kernels.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if job.optimization_level is not None:
        config.builder_optimization_level = job.optimization_level
    if job.workspace is not None:
        limit = job.workspace * 2**20
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, limit)
    if job.hardware != "same":
        levels = trt.HardwareCompatibilityLevel.__members__
        config.hardware_compatibility_level = levels[_HARDWARE[job.hardware]]


def _no_such_flag(trt: Any, job: Job, name: str) -> str:
    product = f"{_NAMES[job.package]} {trt.__version__}"
    if name.lower() in job.precision:
        return (
            f"precision | asks for {name.lower()}; {product} takes every type from the graph; "
            "leave it out, and export the model in that type (--dtype)"
        )
    return f"{name.lower().replace('_', '-')} | is not known to {product}; leave it out"


def _open_cache(config: Any, job: Job) -> Any:
    """Gives the builder the kept timings; starts anew where they are of another build."""
    if not job.timing_cache:
        return None
    kept = Path(job.timing_cache)
    cache = config.create_timing_cache(kept.read_bytes() if kept.is_file() else b"")
    if cache is None or not config.set_timing_cache(cache, False):
        sys.stderr.write("timing cache: of another version or GPU; started anew\n")
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache


def _keep(path: Path, data: memoryview) -> None:
    # Renamed, so that builds side by side never read half a cache.
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_bytes(data)
    part.replace(path)


def _inspect(trt: Any, log: Any, plan: Any, path: Path) -> int | None:
    """Writes what the engine tells of its layers, if this GPU can load it.

    Returns:
        What it says of a context's memory, in bytes.
    """
    runtime = trt.Runtime(log)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        return None
    inspector = engine.create_engine_inspector()
    text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    path.write_text(text, encoding="utf-8")
    # RTX 1.7 has the first alone, older releases of TensorRT the second.
    size = getattr(engine, "device_memory_size_v2", None)
    found: int | None = getattr(engine, "device_memory_size", None) if size is None else size
    return found


def _parse(parser: Any, log: Any, job: Job) -> None:
    if parser.parse_from_file(job.model):
        return
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    said = [_line(error.desc()) for error in errors]
    # The parser's own words leave out such causes as a missing data file.
    causes = [line for line in log.errors if not any(line in s or s in line for s in said)]
    lines = (causes[:1] + [_parser_error(error) for error in errors])[:_MOST_ERRORS]
    raise ModelError(
        f"model '{job.model}' | {_NAMES[job.package]} cannot parse it: {'; '.join(lines)}; "
        f"export it with operators and types that {_NAMES[job.package]} has, and dense weights"
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


def _target(trt: Any, config: Any, sm: tuple[int, ...]) -> None:
    if not sm:
        return
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


def _inputs(network: Any) -> list[NetworkInput]:
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    return [NetworkInput(t.name, tuple(t.shape), _symbols(t)) for t in tensors]


def _add_profile(
    builder: Any, config: Any, inputs: list[NetworkInput], job: Job
) -> dict[str, tuple[tuple[int, ...], ...]]:
    shapes = profile_shapes(inputs, job.batch, job.sequence)
    if not shapes:
        return shapes
    profile = builder.create_optimization_profile()
    for name, (least, best, most) in shapes.items():
        profile.set_shape(name, least, best, most)
    if config.add_optimization_profile(profile) < 0:
        raise RecipeError(
            f"batch and sequence | give the shapes {shapes}, which {_NAMES[job.package]} "
            "refuses; choose ranges that fit the model"
        )
    return shapes


def _symbols(tensor: Any) -> tuple[str | None, ...]:
    return tuple(tensor.get_dimension_name(axis) or None for axis in range(len(tensor.shape)))


def _failure(log: Any, job: Job) -> str:
    target = ", ".join(f"SM{number}" for number in job.sm) or "this GPU"
    reason = log.errors[0] if log.errors else "the log gives no reason"
    conflict = (
        "leave --refit or sparse kernels out, which may not go together, or "
        if job.refit and job.sparse
        else ""
    )
    return (
        f"{_NAMES[job.package]} cannot build it for {target}: {reason}; {conflict}change the "
        "model or the architecture"
    )


def _flags(trt: Any, config: Any, job: Job) -> tuple[str, ...]:
    members = trt.BuilderFlag.__members__
    flags = [name for name, flag in members.items() if config.get_flag(flag)]
    return (*flags, *([] if job.precision else ["STRONGLY_TYPED"]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
