"""Sessions of ONNX Runtime, with one-line errors and no silent change of provider.

ONNX Runtime lists providers that cannot load and falls back to the CPU with a warning, so the
provider is read back from the session.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import TensorProto

from patch_compile._require import require
from patch_compile.errors import ModelError, RuntimeUnavailable
from patch_compile.runtimes.free_axes import pin_axes

__all__ = [
    "CPU",
    "Argument",
    "Provider",
    "Session",
    "assigned_nodes",
    "explained",
    "open_session",
    "read_graph",
    "run_session",
    "session_options",
    "start_session",
]

CPU = ("CPUExecutionProvider",)

_STATE = "onnxruntime.capi.onnxruntime_pybind11_state"
_PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : ([A-Z_]+) : ")
_FP8 = (TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E5M2)
# Fatal only: every failure also arrives as an exception.
_QUIET = 4
# Without it int8 sums saturate at 16 bits on x86 processors that have no VNNI.
_EXACT_INT8 = "session.x64quantprecision"
# Releases from 1.24 on tell which provider takes which node; older ones skip the entry.
_RECORD_NODES = "session.record_ep_graph_assignment_info"
# Providers that come as a library of their own, and the package that carries it.
_PLUGINS = {"NvTensorRTRTXExecutionProvider": "onnxruntime_ep_nv_tensorrt_rtx"}


@dataclass(frozen=True)
class Provider:
    """A provider as ONNX Runtime takes it: its name and its options."""

    name: str
    options: Mapping[str, str] = field(default_factory=dict)


class Argument(Protocol):
    """An input or output of a session."""

    @property
    def name(self) -> str:
        """Its name in the graph."""
        ...

    @property
    def shape(self) -> Sequence[int | str | None]:
        """A size, a symbol or None for each axis."""
        ...

    @property
    def type(self) -> str:
        """Its element type, as in `tensor(float16)`."""
        ...


class Session(Protocol):
    """What this layer uses of an `onnxruntime.InferenceSession`."""

    def get_inputs(self) -> Sequence[Argument]:
        """Lists the inputs in graph order."""
        ...

    def get_outputs(self) -> Sequence[Argument]:
        """Lists the outputs in graph order."""
        ...

    def get_providers(self) -> Sequence[str]:
        """Lists the providers that were really loaded."""
        ...

    def run(
        self, output_names: Sequence[str] | None, input_feed: Mapping[str, NDArray[Any]]
    ) -> list[Any]:
        """Returns the named outputs, all of them for None."""
        ...


def open_session(
    path: Path, *, optimise: bool = True, providers: Sequence[str | Provider] = CPU
) -> Session:
    """Opens a model file on the providers asked for, and on no others.

    Args:
        path: the .onnx file; external data beside it.
        optimise: let ONNX Runtime rewrite the graph, which may reorder sums.
        providers: in order of preference; all of them must load.

    Raises:
        ModelError: if the file is missing or damaged, or has an operator or element type
            that the providers cannot run.
        RuntimeUnavailable: if onnxruntime or one of the providers is missing or broken.
    """
    if not path.is_file():
        raise ModelError(f"model '{path}' | is not a file; give the path of an .onnx file")
    options = session_options(optimise)
    graph = read_graph(path)
    pin_axes(options, graph)
    if optimise and any(tensor.data_type in _FP8 for tensor in graph.initializer):
        # Its extended rewrites of fp8 Q/DQ (1.32) compute what ONNX's reference does not.
        levels = require("onnxruntime", "cpu").GraphOptimizationLevel
        options.graph_optimization_level = levels.ORT_ENABLE_BASIC
    return start_session(f"model '{path}'", str(path), options, providers)


def read_graph(path: Path) -> onnx.GraphProto:
    """Returns the graph of a model without its external data; empty if it is no model."""
    try:
        return onnx.load(path, load_external_data=False).graph
    except DecodeError:
        # ONNX Runtime tells what is wrong with it.
        return onnx.GraphProto()


def session_options(optimise: bool) -> Any:
    """Returns quiet `onnxruntime.SessionOptions` with all graph rewrites on or off."""
    runtime = require("onnxruntime", "cpu")
    levels = runtime.GraphOptimizationLevel
    options = runtime.SessionOptions()
    options.log_severity_level = _QUIET
    options.add_session_config_entry(_RECORD_NODES, "1")
    options.add_session_config_entry(_EXACT_INT8, "1")
    options.graph_optimization_level = (
        levels.ORT_ENABLE_ALL if optimise else levels.ORT_DISABLE_ALL
    )
    return options


def start_session(
    subject: str,
    source: str | bytes,
    options: Any,
    providers: Sequence[str | Provider] = CPU,
) -> Session:
    """Starts a session and checks which providers it really uses.

    Args:
        subject: opens the error messages, as in "model 'a.onnx'".
        source: a path, or a serialized model.
        options: `onnxruntime.SessionOptions`.
        providers: all of them must load.

    Raises:
        ModelError: see `open_session`.
        RuntimeUnavailable: see `open_session`.
    """
    runtime = require("onnxruntime", "cpu")
    wanted = [p if isinstance(p, Provider) else Provider(p) for p in providers]
    names = [provider.name for provider in wanted]
    listed = runtime.get_available_providers()
    plugins = [p for p in wanted if p.name in _PLUGINS and p.name not in listed]
    _check_listed([n for n in names if n not in _PLUGINS], listed)
    chosen: Any = [(provider.name, dict(provider.options)) for provider in wanted]
    for plugin in plugins:
        options.add_provider_for_devices(_devices(runtime, plugin.name), dict(plugin.options))
        # Devices and names exclude each other; the CPU is always there.
        chosen = None
    try:
        # Its own fallback prints to stdout and starts on another provider.
        session: Session = runtime.InferenceSession(
            source, options, providers=chosen, enable_fallback=0
        )
    except _failures() as error:
        _check_loaded(names, error)
        raise ModelError(f"{subject} | {_reason(error)}") from error
    _check_used(names, session.get_providers())
    return session


def _devices(runtime: Any, name: str) -> list[Any]:
    """Loads the library of a provider and returns the first GPU it finds."""
    package = require(_PLUGINS[name], "ort-rtx")
    # Releases before 1.23 lack the functions.
    failures: tuple[type[Exception], ...] = (AttributeError, *_failures())
    try:
        if name not in {device.ep_name for device in runtime.get_ep_devices()}:
            runtime.register_execution_provider_library(name, package.get_library_path())
        found = [device for device in runtime.get_ep_devices() if device.ep_name == name]
    except failures as error:
        raise RuntimeUnavailable(
            f"onnxruntime | could not load {name}: {_one_line(error)}; install the driver and "
            "libraries it needs, and onnxruntime 1.23 or later"
        ) from error
    if not found:
        raise RuntimeUnavailable(f"onnxruntime | {name} finds no GPU that it can use")
    return found[:1]


def assigned_nodes(session: Session) -> dict[str, int] | None:
    """Counts the nodes that each provider took; None where the release cannot tell.

    Args:
        session: made by `start_session` with options of `session_options`.
    """
    tell = getattr(session, "get_provider_graph_assignment_info", None)
    if tell is None:
        return None
    counts: Counter[str] = Counter()
    for part in tell():
        counts[part.ep_name] += len(part.get_nodes())
    return dict(sorted(counts.items()))


def _check_listed(providers: Sequence[str], available: Sequence[str]) -> None:
    missing = [name for name in providers if name not in available]
    if missing:
        raise RuntimeUnavailable(
            f"onnxruntime | has no {', '.join(missing)}; expected one of "
            f"{', '.join(available)}; install the onnxruntime build that has it"
        )


def _check_loaded(providers: Sequence[str], error: Exception) -> None:
    """Tells a provider that cannot start from a model that it cannot run.

    ONNX Runtime raises its own kinds for models; a library that is missing comes as a plain
    RuntimeError.
    """
    if type(error) is RuntimeError and providers[0] not in CPU:
        raise RuntimeUnavailable(
            f"onnxruntime | could not start {providers[0]}: {_one_line(error)}"
        ) from error


def _check_used(providers: Sequence[str], used: Sequence[str]) -> None:
    refused = [name for name in providers if name not in used]
    if refused:
        raise RuntimeUnavailable(
            f"onnxruntime | could not load {', '.join(refused)} and fell back to "
            f"{', '.join(used)}; install the driver and libraries it needs"
        )


def run_session(
    session: Session, feeds: Mapping[str, NDArray[Any]], subject: str = "model"
) -> dict[str, NDArray[Any]]:
    """Runs a session once and returns every output by name, in graph order.

    Args:
        session: an open session.
        feeds: by input name, in the shape and element type of the input.
        subject: opens the error messages.

    Raises:
        ModelError: if a feed does not fit, the run fails, or an output has an element type
            that numpy lacks (bfloat16).
    """
    names = [output.name for output in session.get_outputs()]
    with explained(subject):
        values = session.run(names, feeds)
    return dict(zip(names, values, strict=True))


@contextmanager
def explained(subject: str) -> Iterator[None]:
    """Turns what ONNX Runtime raises in the body into one line.

    Raises:
        ModelError: in place of ONNX Runtime's own exceptions.
    """
    try:
        yield
    except _failures() as error:
        raise ModelError(f"{subject} | {_reason(error)}") from error


def _failures() -> tuple[type[Exception], ...]:
    """All that ONNX Runtime raises; its own exceptions share no base class."""
    state = require(_STATE, "cpu")
    return (
        state.EPFail,
        state.Fail,
        state.InvalidArgument,
        state.InvalidGraph,
        state.InvalidProtobuf,
        state.NoSuchFile,
        state.NotImplemented,
        state.RuntimeException,
        RuntimeError,
        ValueError,
    )


def _reason(error: Exception) -> str:
    """Puts an exception on one line and adds what to do where we know it."""
    text = _one_line(error)
    match = _PREFIX.match(text)
    kind = match.group(1) if match is not None else ""
    return f"cannot run on onnxruntime: {_PREFIX.sub('', text)}{_advice(kind, text)}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _advice(kind: str, text: str) -> str:
    if kind == "NOT_IMPLEMENTED":
        return (
            "; the CPU provider has no such kernel for the element type (bfloat16 products, "
            "for one); export the model as fp32 or fp16 to run it here"
        )
    if "re-use buffer" in text:
        return (
            "; the model declares a shape that its values do not have, as those of "
            "onnxruntime-genai's builder for fp16 on the CPU; export it another way (-e cuda)"
        )
    if "No corresponding Numpy type" in text:
        return "; cast this output to float32 in the model"
    return "; expected a valid ONNX model and inputs that fit it" if kind else ""
