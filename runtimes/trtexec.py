"""Engines by trtexec, which also times them: the road for machines without TensorRT's Python.

trtexec ships with TensorRT's archives, packages and containers, never with pip. Where it is
missing the error is the command to run elsewhere.
"""

import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO

from patch_compile.errors import ModelError, PatchCompileError, RuntimeUnavailable
from patch_compile.io.atomic import staged_folder
from patch_compile.recipe import BuildRecipe
from patch_compile.runtimes._process import death, run_logged, tail
from patch_compile.runtimes.engine_file import Built, record_engine, sha256_of
from patch_compile.runtimes.engines import EngineResult
from patch_compile.runtimes.evidence import Evidence
from patch_compile.runtimes.layer_info import read_layer_file
from patch_compile.runtimes.network_inputs import network_inputs
from patch_compile.runtimes.profiles import profile_shapes, symbol_sizes
from patch_compile.runtimes.trtexec_command import (
    ANY_VERSION,
    Exports,
    Trtexec,
    find_trtexec,
    probe,
    trtexec_command,
)
from patch_compile.runtimes.trtexec_log import (
    log_lines,
    read_device,
    read_errors,
    read_memory,
    read_performance,
    read_sparsity,
    read_version,
    stage,
)

__all__ = ["build_engine", "check_ready", "read_evidence"]

Progress = Callable[[int, int, str], None]

# Lines that hold the banner, the options and the GPU.
_HEAD = 400
_MISSING = (
    "program 'trtexec' | is neither on the PATH nor in /usr/src/tensorrt/bin; it comes with "
    "TensorRT, not with pip; give its path in TRTEXEC"
)


def build_engine(
    model: Path, engine: Path, recipe: BuildRecipe, progress: Progress | None = None
) -> EngineResult:
    """Builds and times an engine; it appears whole or not at all.

    Args:
        model: the .onnx file; external data beside it.
        engine: file to write. `<name>.engine.json`, `.log`, `.layers.json`, `.profile.json`
            and `.times.json` go beside it; a failed build leaves the log alone.
        recipe: flags, ranges and time limit.
        progress: called with (stages done, stages, what trtexec is at).

    Raises:
        RecipeError: if this trtexec cannot do what the recipe asks.
        ModelError: if the model is missing, or trtexec refuses it.
        RuntimeUnavailable: if trtexec is missing, with the command to run elsewhere; if it
            crashes, or takes longer than the recipe allows.
    """
    inputs = network_inputs(model)
    shapes = profile_shapes(inputs, recipe.batch, recipe.sequence)
    path = find_trtexec()
    if path is None:
        raise RuntimeUnavailable(_elsewhere(model, engine, recipe, shapes))
    tool = probe(path)
    started = time.monotonic()
    log = engine.with_suffix(".engine.log")
    with staged_folder(engine.parent) as folder:
        staged = folder / engine.name
        exports = _exports(staged, engine.parent, recipe)
        built = Built(staged, engine, model, sha256_of(model), recipe, started, log)
        command = trtexec_command(tool, model, staged, recipe, shapes, exports)
        _run(command, staged, log, recipe.timeout, progress)
        evidence = read_evidence(
            log,
            exports.layers,
            requested=recipe.sparse,
            symbols=symbol_sizes(inputs, shapes),
        )
        return record_engine(
            built,
            evidence,
            sm=() if evidence.sm is None else (evidence.sm,),
            flags=_plain(tool, model, engine, recipe, shapes),
            profiles=shapes,
        )


def _plain(
    tool: Trtexec,
    model: Path,
    engine: Path,
    recipe: BuildRecipe,
    shapes: dict[str, tuple[tuple[int, ...], ...]],
) -> tuple[str, ...]:
    """The flags without the folders of this machine."""
    exports = _exports(Path(engine.name), Path(), recipe)
    command = trtexec_command(
        tool, Path(model.name), Path(engine.name), recipe, shapes, exports
    )
    return command[1:]


def check_ready(_: BuildRecipe) -> None:
    """Refuses to build where there is no trtexec, before there is a model to build.

    Raises:
        RuntimeUnavailable: if it is missing.
    """
    if find_trtexec() is None:
        raise RuntimeUnavailable(
            f"{_MISSING}, or leave --engine out and make a bundle of compiled.onnx for a "
            "machine that has it (build out/compiled.onnx --bundle out.tar)"
        )


def _elsewhere(
    model: Path,
    engine: Path,
    recipe: BuildRecipe,
    shapes: dict[str, tuple[tuple[int, ...], ...]],
) -> str:
    exports = _exports(engine, engine.parent, recipe)
    command = trtexec_command(ANY_VERSION, model, engine, recipe, shapes, exports)
    return (
        f"{_MISSING}, make a bundle for a machine that has it (--bundle out.tar), or run "
        f"there: {shlex.join(command)}"
    )


def _exports(engine: Path, folder: Path, recipe: BuildRecipe) -> Exports:
    return Exports(
        layers=engine.with_suffix(".engine.layers.json"),
        profile=engine.with_suffix(".engine.profile.json"),
        times=engine.with_suffix(".engine.times.json"),
        cache=folder / recipe.timing_cache if recipe.timing_cache else None,
    )


def _run(
    command: tuple[str, ...],
    engine: Path,
    log: Path,
    timeout: float,
    progress: Progress | None,
) -> None:
    with _follower(log, progress) as show:
        code = run_logged(command, log, subject="trtexec", timeout=timeout, show=show)
    if code == 0 and engine.is_file():
        return
    raise _failure(code, log)


def _failure(code: int, log: Path) -> PatchCompileError:
    errors = read_errors(log_lines(log))
    said = errors[0] if errors else f"last words: {tail(log)}"
    kind = RuntimeUnavailable if code < 0 else ModelError
    end = death(code) if code else "wrote no engine"
    return kind(f"trtexec | {end}: {said}; full log: '{log}'; mend the model or the flags")


@contextmanager
def _follower(log: Path, progress: Progress | None) -> Iterator[Callable[[], None]]:
    """Yields a function that reads what was added to a log and reports its milestones."""
    log.write_bytes(b"")
    with log.open(encoding="utf-8", errors="replace") as lines:
        yield lambda: _follow(lines, progress)


def _follow(lines: IO[str], progress: Progress | None) -> None:
    # Going on after the end of the file reads what was added since.
    for line in lines:
        state = stage(line)
        if state is not None and progress is not None:
            progress(*state)


def read_evidence(
    log: Path, layers: Path, *, requested: bool, symbols: Mapping[str, int]
) -> Evidence:
    """Reads what trtexec left behind.

    Args:
        log: with everything it said.
        layers: its `--exportLayerInfo`; it may be missing.
        requested: sparse kernels were allowed.
        symbols: sizes of the dynamic axes at the point that kernels were timed at.

    Raises:
        ModelError: if the layers are damaged.
    """
    # A verbose log is long: it is never held whole.
    head = list(islice(log_lines(log), _HEAD))
    device, sm = read_device(head)
    version = read_version("".join(head))
    return Evidence(
        backend="trtexec",
        version="" if version is None else ".".join(map(str, version)),
        device=device,
        sm=sm,
        requested=requested,
        sparsity=read_sparsity(log_lines(log)),
        layers=read_layer_file(layers),
        symbols=tuple(symbols.items()),
        performance=read_performance(log_lines(log)),
        memory=read_memory(log_lines(log)),
    )
