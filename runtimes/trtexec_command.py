"""The command line of trtexec, for the version at hand or for any.

TensorRT 11 took the precision flags away and made strong typing, CUDA graphs, spin waits and
runs without data transfers its defaults; 10 wants each by name. What a version has is read
off its `--help`.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from patch_compile.errors import RecipeError, RuntimeUnavailable
from patch_compile.recipe import BuildRecipe
from patch_compile.runtimes.trtexec_log import read_version

__all__ = [
    "ANY_VERSION",
    "Exports",
    "Trtexec",
    "find_trtexec",
    "plain_arguments",
    "probe",
    "read_help",
    "timing_command",
    "trtexec_command",
]

# Where NVIDIA's packages and containers put it, off the PATH.
_PLACES = ("/usr/src/tensorrt/bin", "/opt/tensorrt/bin", "/usr/local/tensorrt/bin")
_OPTION = re.compile(r"^\s+--([A-Za-z][A-Za-z0-9]*)", re.MULTILINE)
_SECONDS = 60.0

_PRECISIONS = ("fp16", "bf16", "int8", "fp8")
_HARDWARE = {"ampere-plus": "ampere+", "same-capability": "sameComputeCapability"}
# The defaults of TensorRT 11, which make timings steady: without the host and the copies.
_STEADY = ("useCudaGraph", "useSpinWait", "noDataTransfers")
# Wanted beside them where layers are profiled.
_APART = "separateProfileRun"


@dataclass(frozen=True)
class Trtexec:
    """A trtexec and what it can do.

    Attributes:
        path: of the binary.
        version: (major, minor, patch); None if unknown.
        options: names of its options; empty if unknown, which takes all for known.
    """

    path: str
    version: tuple[int, int, int] | None = None
    options: frozenset[str] = frozenset()

    def has(self, option: str) -> bool:
        """Tells whether an option is known, or may be."""
        return not self.options or option in self.options


# Stands for the trtexec of another machine: what is taken holds for 10 and 11.
ANY_VERSION = Trtexec("trtexec")


@dataclass(frozen=True)
class Exports:
    """Files that trtexec writes beside the engine.

    Attributes:
        layers: what the engine tells of its layers.
        profile: milliseconds of every layer.
        times: milliseconds of every run.
        cache: of kernel timings; None for none.
    """

    layers: Path
    profile: Path
    times: Path
    cache: Path | None


def find_trtexec(environment: Mapping[str, str] = os.environ) -> str | None:
    """Returns the path of trtexec: `$TRTEXEC`, on the PATH, or where NVIDIA puts it."""
    named = environment.get("TRTEXEC")
    if named:
        return named
    places = os.pathsep.join([environment.get("PATH", ""), *_PLACES])
    return shutil.which("trtexec", path=places)


def probe(path: str) -> Trtexec:
    """Asks a trtexec for its version and options.

    Raises:
        RuntimeUnavailable: if it does not run, or is no trtexec.
    """
    try:
        done = subprocess.run(
            [path, "--help"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = error.strerror if isinstance(error, OSError) else f"no answer in {_SECONDS} s"
        raise RuntimeUnavailable(
            f"program '{path}' | does not run: {reason}; give another in TRTEXEC"
        ) from error
    tool = read_help(path, done.stdout + done.stderr)
    if "onnx" not in tool.options:
        said = " ".join((done.stdout + done.stderr).split())[-200:]
        raise RuntimeUnavailable(
            f"program '{path}' | does not answer --help as trtexec does: {said or 'nothing'}; "
            "give another in TRTEXEC"
        )
    return tool


def read_help(path: str, text: str) -> Trtexec:
    """Reads version and options off what `trtexec --help` prints."""
    return Trtexec(path, read_version(text), frozenset(_OPTION.findall(text)))


def trtexec_command(
    tool: Trtexec,
    model: Path,
    engine: Path,
    recipe: BuildRecipe,
    shapes: Mapping[str, tuple[tuple[int, ...], ...]],
    exports: Exports,
) -> tuple[str, ...]:
    """Returns the command that builds an engine and times it.

    Args:
        tool: the trtexec.
        model: the .onnx file.
        engine: file to write.
        recipe: what is asked for.
        shapes: least, best and most shape of every dynamic input.
        exports: further files to write.

    Raises:
        RecipeError: if this trtexec cannot do what the recipe asks.
    """
    plain = plain_arguments(model, recipe, shapes)
    cache = [] if exports.cache is None else [f"--timingCacheFile={exports.cache}"]
    return (
        tool.path,
        *plain,
        f"--saveEngine={engine}",
        *_types(tool, recipe),
        *cache,
        # Verbose logs alone name the layers that are eligible and chosen.
        "--verbose",
        "--profilingVerbosity=detailed",
        f"--exportLayerInfo={exports.layers}",
        f"--exportProfile={exports.profile}",
        f"--exportTimes={exports.times}",
        *_steady(tool, *_STEADY, _APART),
        *recipe.flags,
    )


def timing_command(
    tool: Trtexec,
    engine: Path,
    shapes: Mapping[str, tuple[tuple[int, ...], ...]],
    runs: int,
    times: Path,
) -> tuple[str, ...]:
    """Returns the command that times an engine for at least a second.

    Args:
        tool: the trtexec.
        engine: the engine.
        shapes: of every dynamic input, at three points that are one.
        runs: at the least.
        times: file to write.
    """
    sizes = [f"--shapes={_shape_list(shapes, 1)}"] if shapes else []
    return (
        tool.path,
        f"--loadEngine={engine}",
        *sizes,
        f"--iterations={runs}",
        "--duration=1",
        f"--exportTimes={times}",
        *_steady(tool, *_STEADY),
    )


def plain_arguments(
    model: Path, recipe: BuildRecipe, shapes: Mapping[str, tuple[tuple[int, ...], ...]]
) -> tuple[str, ...]:
    """Returns the arguments that are those of any version, but for `recipe.flags`.

    Args:
        model: the .onnx file.
        recipe: what is asked for.
        shapes: least, best and most shape of every dynamic input.

    Raises:
        RecipeError: if no trtexec can do what the recipe asks.
    """
    _check(recipe)
    return (
        f"--onnx={model}",
        f"--sparsity={'enable' if recipe.sparse else 'disable'}",
        *_shapes(shapes),
        *_options(recipe),
    )


def _check(recipe: BuildRecipe) -> None:
    if recipe.sm:
        raise RecipeError(
            f"sm | is {', '.join(map(str, recipe.sm))}; trtexec builds for the GPU at hand; "
            "leave it out, or choose --engine tensorrt_rtx"
        )
    if recipe.strict_nans:
        raise RecipeError(
            "strict-nans | is asked for; trtexec has no such option; choose --engine tensorrt"
        )
    strange = [flag for flag in recipe.flags if not flag.startswith("--")]
    if strange:
        raise RecipeError(
            f"flags | hold '{strange[0]}'; expected flags of trtexec, each as --name or "
            "--name=value"
        )


def _types(tool: Trtexec, recipe: BuildRecipe) -> list[str]:
    if not recipe.precision:
        return ["--stronglyTyped"] if tool.has("stronglyTyped") else []
    missing = [name for name in recipe.precision if not tool.has(name)]
    if missing:
        version = ".".join(map(str, tool.version or ()))
        raise RecipeError(
            f"precision | asks for {missing[0]}; trtexec {version} takes every type from the "
            "graph; leave it out, and export the model in that type (--dtype)"
        )
    return [f"--{name}" for name in _PRECISIONS if name in recipe.precision]


def _shapes(shapes: Mapping[str, tuple[tuple[int, ...], ...]]) -> list[str]:
    names = ("minShapes", "optShapes", "maxShapes") if shapes else ()
    return [f"--{name}={_shape_list(shapes, index)}" for index, name in enumerate(names)]


def _shape_list(shapes: Mapping[str, tuple[tuple[int, ...], ...]], point: int) -> str:
    return ",".join(
        f"{_quoted(tensor)}:{'x'.join(map(str, points[point]))}"
        for tensor, points in shapes.items()
    )


def _quoted(tensor: str) -> str:
    """Names that hold the signs of a list stand in single quotes, which trtexec reads."""
    return f"'{tensor}'" if set(tensor) & set(":,") else tensor


def _options(recipe: BuildRecipe) -> list[str]:
    options = {
        "builderOptimizationLevel": recipe.optimization_level,
        "memPoolSize": None if recipe.workspace is None else f"workspace:{recipe.workspace}M",
        "hardwareCompatibilityLevel": _HARDWARE.get(recipe.hardware),
    }
    given = [f"--{name}={value}" for name, value in options.items() if value is not None]
    return [*given, *(["--refit"] if recipe.refit else [])]


def _steady(tool: Trtexec, *names: str) -> list[str]:
    if tool.version is not None and tool.version[0] >= 11:
        return []
    return [f"--{name}" for name in names if tool.has(name)]
