"""Execution providers of ONNX Runtime: their names, their options, what a model asks of them.

Provider options are strings, as ONNX Runtime takes them. TensorRT (10.x) and TensorRT-RTX
build engines for ranges of shapes; a precision that TensorRT 10 must be allowed to use is
allowed when the graph itself has it, and never otherwise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from patch_compile.errors import ModelError, RuntimeUnavailable
from patch_compile.recipe import BenchRuntime
from patch_compile.runtimes.inputs import Shape, input_shapes
from patch_compile.runtimes.onnxruntime import Provider, Session, assigned_nodes

__all__ = [
    "PROVIDERS",
    "Declared",
    "DeclaredInput",
    "EngineWishes",
    "check_assigned",
    "providers",
    "type_name",
]

PROVIDERS: dict[BenchRuntime, str] = {
    "ort-cpu": "CPUExecutionProvider",
    "ort-cuda": "CUDAExecutionProvider",
    "ort-tensorrt": "TensorrtExecutionProvider",
    "ort-rtx": "NvTensorRTRTXExecutionProvider",
}

_TYPES: dict[int, str] = {
    TensorProto.FLOAT: "tensor(float)",
    TensorProto.FLOAT16: "tensor(float16)",
    TensorProto.BFLOAT16: "tensor(bfloat16)",
}


@dataclass(frozen=True)
class DeclaredInput:
    """An input as the .onnx file declares it."""

    name: str
    shape: Sequence[int | str | None]
    type: str


@dataclass(frozen=True)
class Declared:
    """What the .onnx file alone tells, without its weights.

    Attributes:
        inputs: in graph order, without initializers.
        weight_types: ONNX names of the initializers' element types, as in `FLOAT16`.
        data_files: names of the files beside it that hold weights.
    """

    inputs: tuple[DeclaredInput, ...]
    weight_types: frozenset[str]
    data_files: frozenset[str] = frozenset()

    @classmethod
    def of(cls, model: Path) -> "Declared":
        """Reads the graph of a model.

        Raises:
            ModelError: if the file is missing or no ONNX model.
        """
        try:
            graph = onnx.load(model, load_external_data=False).graph
        except (OSError, DecodeError) as error:
            raise ModelError(
                f"model '{model}' | cannot be read: {error}; give the path of an .onnx file"
            ) from error
        stored = {tensor.name for tensor in graph.initializer}
        inputs = [_declared(value) for value in graph.input if value.name not in stored]
        kinds = {type_name(tensor.data_type) for tensor in graph.initializer}
        outside = [ExternalDataInfo(t) for t in graph.initializer if uses_external_data(t)]
        files = frozenset(info.location for info in outside)
        return cls(tuple(inputs), frozenset(kinds), files)


def type_name(kind: int) -> str:
    """The name of an element type; newer releases and damaged files hold some without."""
    known = kind in TensorProto.DataType.values()
    return TensorProto.DataType.Name(kind) if known else f"TYPE_{kind}"


def _declared(value: onnx.ValueInfoProto) -> DeclaredInput:
    kind = value.type.tensor_type
    shape = [
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None
        for dim in kind.shape.dim
    ]
    name = type_name(kind.elem_type).lower()
    return DeclaredInput(value.name, shape, _TYPES.get(kind.elem_type, f"tensor({name})"))


@dataclass(frozen=True)
class EngineWishes:
    """What a provider that builds engines is to build.

    Attributes:
        model: what the graph declares.
        batch: sequences at a time.
        tokens: least and most of a sequence; engines are tuned for the most.
        sparse: allow sparse kernels.
        cache: folder that keeps engines and timings for a later run.
        context: .onnx file to write that holds the engines in place of the graph; for
            TensorRT-RTX it is an option of the session instead.
    """

    model: Declared
    batch: int = 1
    tokens: tuple[int, int] = (1, 1)
    sparse: bool = True
    cache: Path | None = None
    context: Path | None = None

    def shapes(self) -> tuple[str, str, str]:
        """Least, best and most shapes of the dynamic inputs: `a:1x8,b:1x8`."""
        least, most = (
            input_shapes(self.model.inputs, batch=self.batch, sequence=tokens)
            for tokens in self.tokens
        )
        dynamic = [
            argument.name
            for argument in self.model.inputs
            if not all(isinstance(size, int) for size in argument.shape)
        ]
        shortest, longest = _shape_list(least, dynamic), _shape_list(most, dynamic)
        return shortest, longest, longest


def _shape_list(shapes: Mapping[str, Shape], names: Sequence[str]) -> str:
    return ",".join(f"{name}:{'x'.join(map(str, shapes[name]))}" for name in names)


def providers(runtime: BenchRuntime, wishes: EngineWishes) -> tuple[Provider, ...]:
    """Returns the providers of a runtime, in order of preference.

    What TensorRT does not take goes to CUDA, and the rest of it to the CPU; how many nodes
    went where is told by `assigned_nodes` of an open session.
    """
    first = Provider(PROVIDERS[runtime], _OPTIONS[runtime](wishes))
    cuda = Provider(PROVIDERS["ort-cuda"])
    cpu = Provider(PROVIDERS["ort-cpu"])
    if runtime == "ort-cpu":
        return (first,)
    return (first, cuda, cpu) if runtime == "ort-tensorrt" else (first, cpu)


def check_assigned(session: Session, runtime: BenchRuntime) -> dict[str, int] | None:
    """Returns the nodes of each provider; a provider may load and then take none at all.

    Raises:
        RuntimeUnavailable: if the runtime's own provider took no node.
    """
    name, nodes = PROVIDERS[runtime], assigned_nodes(session)
    if nodes is not None and not nodes.get(name):
        raise RuntimeUnavailable(
            f"onnxruntime | loaded {name}, which took none of {sum(nodes.values())} nodes; "
            f"they would run on {', '.join(nodes)}; choose that runtime"
        )
    return nodes


def _none(_: EngineWishes) -> dict[str, str]:
    return {}


def _tensorrt_options(wishes: EngineWishes) -> dict[str, str]:
    kinds = wishes.model.weight_types
    allowed = {
        "trt_sparsity_enable": wishes.sparse,
        "trt_fp16_enable": "FLOAT16" in kinds,
        "trt_bf16_enable": "BFLOAT16" in kinds,
        "trt_int8_enable": "INT8" in kinds,
    }
    options = {name: str(int(value)) for name, value in allowed.items()}
    least, best, most = wishes.shapes()
    if most:
        options["trt_profile_min_shapes"] = least
        options["trt_profile_opt_shapes"] = best
        options["trt_profile_max_shapes"] = most
    if wishes.cache is not None:
        options["trt_engine_cache_enable"] = options["trt_timing_cache_enable"] = "1"
        options["trt_engine_cache_path"] = str(wishes.cache)
        options["trt_timing_cache_path"] = str(wishes.cache)
    if wishes.context is not None:
        options["trt_dump_ep_context_model"] = "1"
        options["trt_ep_context_file_path"] = str(wishes.context)
        # Inside the file: an engine beside it is easily lost.
        options["trt_ep_context_embed_mode"] = "1"
    return options


def _rtx_options(wishes: EngineWishes) -> dict[str, str]:
    """The provider has no sparsity option, and takes the types of the graph as they are."""
    options = {}
    least, best, most = wishes.shapes()
    if most:
        options["nv_profile_min_shapes"] = least
        options["nv_profile_opt_shapes"] = best
        options["nv_profile_max_shapes"] = most
    if wishes.cache is not None:
        options["nv_runtime_cache_path"] = str(wishes.cache)
    return options


_OPTIONS = {
    "ort-cpu": _none,
    "ort-cuda": _none,
    "ort-tensorrt": _tensorrt_options,
    "ort-rtx": _rtx_options,
}
