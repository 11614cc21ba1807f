"""What of this machine works for which verb, found out by trying, and how to mend the rest.

A listed provider or an installed package proves little: ONNX Runtime lists providers that
cannot load, and TensorRT's wheel may be a placeholder. So each part does a small job, in a
process of its own, as native code may crash.
"""

import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import numpy as np
import onnx_ir as ir

from patch_compile._require import pip_install
from patch_compile.errors import PatchCompileError
from patch_compile.io.atomic import write_bytes
from patch_compile.recipe import BuildRecipe
from patch_compile.runtimes.engines import build_engine
from patch_compile.runtimes.gpu import Gpu, find_gpus
from patch_compile.runtimes.trtexec_command import find_trtexec, probe

__all__ = ["Check", "Diagnosis", "diagnose"]

State = Literal["works", "missing", "broken"]
Progress = Callable[[int, int, str], None]

_SECONDS = 120.0
_SIZE = 64
_FIRST_SPARSE_SM = 80

# Others, as Azure's, run products elsewhere or leave them to the CPU.
_CUDA_PROVIDER = "CUDAExecutionProvider"
_PROVIDERS = (
    "CPUExecutionProvider",
    _CUDA_PROVIDER,
    "TensorrtExecutionProvider",
    "NvTensorRTRTXExecutionProvider",
)

_CORE = ("patch-compile", "numpy", "onnx", "onnx-ir", "onnxscript", "safetensors", "scipy")
_OPTIONAL = (
    *("torch", "transformers", "onnxruntime", "onnxruntime-gpu", "tokenizers", "lm-eval"),
    *("tensorrt", "tensorrt-rtx", "nvidia-modelopt", "polygraphy"),
)


@dataclass(frozen=True)
class Check:
    """One part of the machine.

    Attributes:
        name: of the part.
        state: `works`, `missing` or `broken`.
        found: what is there, or what went wrong.
        serves: what needs it.
        mend: the command or step that mends it; empty if it works.
    """

    name: str
    state: State
    found: str
    serves: str
    mend: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """The whole machine.

    Attributes:
        system: operating system and processor.
        python: version.
        packages: version by distribution; those that are missing are left out.
        checks: the parts, in the order of the work.
    """

    system: str
    python: str
    packages: dict[str, str]
    checks: tuple[Check, ...]


def diagnose(progress: Progress | None = None) -> Diagnosis:
    """Tries every part that some verb needs; takes some seconds.

    Args:
        progress: called with (parts done, parts, the next part).
    """
    gpus = find_gpus()
    with tempfile.TemporaryDirectory(prefix="patch-compile-") as name:
        model = _product(Path(name) / "product.onnx")
        parts: tuple[tuple[str, Callable[[], Sequence[Check]]], ...] = (
            ("GPU", lambda: [_gpu(gpus), _cuda()]),
            ("torch", lambda: [_torch()]),
            ("ONNX Runtime", lambda: _providers(model, gpus)),
            ("TensorRT-RTX", lambda: [_builder("tensorrt_rtx", model)]),
            ("TensorRT", lambda: [_builder("tensorrt", model)]),
            ("trtexec", lambda: [_trtexec()]),
        )
        checks: list[Check] = []
        for index, (part, examine) in enumerate(parts):
            if progress is not None:
                progress(index, len(parts), f"examining, {part}")
            checks += examine()
    return Diagnosis(
        system=platform.platform(),
        python=platform.python_version(),
        packages=_packages(),
        checks=tuple(checks),
    )


def _packages() -> dict[str, str]:
    found = {name: _version(name) for name in (*_CORE, *_OPTIONAL)}
    return {name: number for name, number in found.items() if number is not None}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _product(path: Path) -> Path:
    """A float16 product of x (batch, 64) with a 2:4 weight (64, 64)."""
    weight = np.ones((_SIZE, _SIZE), np.float16)
    weight.reshape(_SIZE // 4, 4, _SIZE)[:, :2] = 0
    kind = ir.TensorType(ir.DataType.FLOAT16)
    x, y = (ir.Value(name=n, type=kind, shape=ir.Shape(["batch", _SIZE])) for n in "xy")
    w = ir.Value(name="w", type=kind, shape=ir.Shape(weight.shape))
    w.const_value = ir.tensor(weight, name="w")
    node = ir.Node("", "MatMul", [x, w], outputs=[y], name="product")
    graph = ir.Graph(
        [x], [y], nodes=[node], initializers=[w], opset_imports={"": 20}, name="product"
    )
    proto = ir.serde.serialize_model(ir.Model(graph, ir_version=10))
    write_bytes(path, proto.SerializeToString())
    return path


def _gpu(gpus: Sequence[Gpu]) -> Check:
    serves = "engines of tensorrt and trtexec, sparse kernels, speed"
    if not gpus:
        return Check(
            "GPU and driver",
            "missing",
            "nvidia-smi finds none",
            serves,
            "on a machine with an NVIDIA GPU: sudo ubuntu-drivers install (Ubuntu), or docker "
            "run --gpus all; without one: build --engine tensorrt_rtx, or build --bundle",
        )
    found = ", ".join(f"{g.name} (SM {g.sm}, driver {g.driver}, {g.memory} MiB)" for g in gpus)
    if all(gpu.sm < _FIRST_SPARSE_SM for gpu in gpus):
        mend = "sparse tensor cores came with SM 80 (Ampere): use a newer GPU"
        return Check("GPU and driver", "broken", found, serves, mend)
    return Check("GPU and driver", "works", found, serves)


# Prints the version of CUDA that the driver speaks, as in 12040.
_CUDA = """
import ctypes
cuda, found = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
assert cuda.cuDriverGetVersion(ctypes.byref(found)) == 0, "the driver gives no version"
print(f"CUDA {found.value // 1000}.{found.value % 1000 // 10}")
"""


def _cuda() -> Check:
    works, said = _ask(_CUDA)
    mend = "" if works else "install NVIDIA's driver, which brings libcuda.so.1; see above"
    state: State = "works" if works else "missing"
    return Check("CUDA of the driver", state, said, "everything on the GPU", mend)


_TORCH = """
import torch, transformers
where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU only"
print(f"torch {torch.__version__}, transformers {transformers.__version__}, {where}")
"""


def _torch() -> Check:
    works, said = _ask(_TORCH)
    state: State = "works" if works else "missing" if "No module named" in said else "broken"
    mend = "" if works else pip_install("learn")
    return Check("torch", state, said, "learn, export, eval of torch models", mend)


_LISTED = "import onnxruntime; print(*onnxruntime.get_available_providers())"
_OPENED = """
import sys
from pathlib import Path
from patch_compile.runtimes.onnxruntime import open_session, run_session
from patch_compile.runtimes.inputs import random_inputs
session = open_session(Path(sys.argv[1]), providers=(sys.argv[2],))
run_session(session, random_inputs(session))
print("loads and runs a product")
"""


def _providers(model: Path, gpus: Sequence[Gpu]) -> list[Check]:
    """One check a provider that is listed; listed is not loaded."""
    works, said = _ask(_LISTED)
    if not works:
        mend = pip_install("cpu")
        state: State = "missing" if "No module named" in said else "broken"
        return [Check("ONNX Runtime", state, said, "verify, eval, bench", mend)]
    listed = said.split()
    checks = [_provider(model, name) for name in listed if name in _PROVIDERS]
    if gpus and _CUDA_PROVIDER not in listed:
        mend = f"pip uninstall onnxruntime, then {pip_install('gpu', 'onnxruntime')}"
        what = "this build of ONNX Runtime has none"
        name = f"ONNX Runtime {_CUDA_PROVIDER}"
        checks.append(Check(name, "missing", what, "bench on this provider", mend))
    return checks


def _provider(model: Path, name: str) -> Check:
    works, said = _ask(_OPENED, str(model), name)
    serves = "verify, eval, bench" if name.startswith("CPU") else "bench on this provider"
    mend = "" if works else "install the CUDA and TensorRT libraries of the release it names"
    return Check(f"ONNX Runtime {name}", "works" if works else "broken", said, serves, mend)


def _builder(engine: Literal["tensorrt", "tensorrt_rtx"], model: Path) -> Check:
    serves = f"build --engine {engine}"
    name = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}[engine]
    recipe = BuildRecipe(engine=engine, timing_cache="", timeout=_SECONDS)
    try:
        result = build_engine(model, model.with_suffix(".engine"), recipe)
    except PatchCompileError as error:
        what = str(error).partition(" | ")[2]
        if "is not installed" not in what:
            return Check(name, "broken", what, serves, "see the message, and its log")
        extra = {"tensorrt": "gpu", "tensorrt_rtx": "rtx"}[engine]
        mend = pip_install(extra, "tensorrt")
        return Check(name, "missing", "not installed", serves, mend)
    return Check(name, "works", f"{result.version} builds a product", serves)


def _trtexec() -> Check:
    serves = "build --engine trtexec, bench on the GPU"
    path = find_trtexec()
    if path is None:
        return Check(
            "trtexec",
            "missing",
            "not on the PATH, not in /usr/src/tensorrt/bin",
            serves,
            "sudo apt install libnvinfer-bin (NVIDIA's repository), NVIDIA's TensorRT tar, or "
            "the container nvcr.io/nvidia/tensorrt; or give its path in TRTEXEC",
        )
    try:
        tool = probe(path)
    except PatchCompileError as error:
        what = str(error).partition(" | ")[2]
        return Check("trtexec", "broken", what, serves, "TRTEXEC=/path/to/trtexec")
    number = ".".join(map(str, tool.version or ())) or "of unknown version"
    return Check("trtexec", "works", f"{number} in {path}", serves)


def _ask(code: str, *arguments: str) -> tuple[bool, str]:
    """Runs Python in a process of its own: whether it ended well, and its last line."""
    paths = os.pathsep.join(os.path.abspath(path) for path in sys.path)
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
            env={**os.environ, "PYTHONPATH": paths},
        )
    except subprocess.TimeoutExpired:
        return False, f"no answer in {_SECONDS:g} s"
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    last = " ".join(lines[-1].split()) if lines else f"ended with {done.returncode}"
    return done.returncode == 0, last
