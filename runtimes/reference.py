"""The masked dense model: the independent judge of a compiled graph.

It shares no code with the passes: weights are masked as `where(keep, w, 0)` with numpy, and
the original graph runs with them. Nothing is written to disk. Weights in external files are
replaced when the session starts; inline ones are edited in the graph.

N: out features. K: in features.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from patch_compile._require import require
from patch_compile.errors import MaskError, ModelError
from patch_compile.runtimes.free_axes import pin_axes
from patch_compile.runtimes.onnxruntime import (
    CPU,
    Session,
    session_options,
    start_session,
)
from patch_compile.runtimes.providers import type_name

__all__ = ["MaskedTensor", "open_reference"]

Progress = Callable[[int, int, str], None]

_FLOATS: dict[int, np.dtype[Any]] = {
    TensorProto.FLOAT: np.dtype(np.float32),
    TensorProto.FLOAT16: np.dtype(np.float16),
    TensorProto.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
}
_FOLDER = "session.model_external_initializers_file_folder_path"


@dataclass(frozen=True)
class MaskedTensor:
    """A weight of the original model and what is kept of it.

    Attributes:
        tensor: name of the initializer, or of a Constant node's output.
        keep: returns the keep mask, bool (N, K); called once.
        transposed: the tensor is stored (K, N) rather than (N, K).
    """

    tensor: str
    keep: Callable[[], NDArray[np.bool_]]
    transposed: bool


def open_reference(
    model: Path,
    masked: Sequence[MaskedTensor],
    *,
    optimise: bool = True,
    providers: Sequence[str] = CPU,
    progress: Progress | None = None,
) -> Session:
    """Opens the original model with its weights masked.

    The masked weights are held in memory twice: here, for as long as the session lives, and
    in the session.

    Args:
        model: the original, dense .onnx file; external data beside it.
        masked: every tensor at most once. A tensor is masked for all of its uses.
        optimise: let ONNX Runtime rewrite the graph.
        providers: see `open_session`.
        progress: called with (tensors done, tensors, tensor name).

    Raises:
        ModelError: if the model cannot be read or run, or lacks a tensor.
        MaskError: if a mask does not fit its tensor, or a tensor is named twice.
        RuntimeUnavailable: if onnxruntime or a provider is missing.
    """
    proto = _read(model)
    tensors = _tensors(proto)
    external = {t.name for t in proto.graph.initializer if uses_external_data(t)}
    _check_unique(masked)
    replaced: dict[str, Any] = {}
    for done, item in enumerate(masked, start=1):
        tensor = _named(tensors, item.tensor)
        weight = _masked_weight(tensor, model.parent, item)
        if item.tensor in external:
            replaced[item.tensor] = _ort_value(weight, tensor.data_type)
        else:
            tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
        if progress is not None:
            progress(done, len(masked), f"masking, {item.tensor}")
    options = session_options(optimise)
    pin_axes(options, proto.graph)
    # Not `add_initializer`: with rewrites on, it is ignored for float16 weights.
    options.add_external_initializers(list(replaced), list(replaced.values()))
    source: str | bytes = str(model)
    if len(replaced) < len(masked):
        options.add_session_config_entry(_FOLDER, str(model.absolute().parent))
        source = proto.SerializeToString()
    return start_session(f"reference of '{model}'", source, options, providers)


def _read(model: Path) -> onnx.ModelProto:
    try:
        return onnx.load(model, load_external_data=False)
    except OSError as error:
        raise ModelError(
            f"model '{model}' | cannot be read: {error.strerror}; give the path of an "
            ".onnx file"
        ) from error
    except DecodeError as error:
        raise ModelError(f"model '{model}' | is not a readable ONNX file: {error}") from error


def _tensors(proto: onnx.ModelProto) -> dict[str, TensorProto]:
    """Maps names to the tensors of Constant nodes and initializers of the main graph."""
    constants = {
        node.output[0]: attribute.t
        for node in proto.graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    }
    return constants | {tensor.name: tensor for tensor in proto.graph.initializer}


def _check_unique(masked: Sequence[MaskedTensor]) -> None:
    names = [item.tensor for item in masked]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise MaskError(
            f"weight '{min(twice)}' | has several masks; expected one; join them first"
        )


def _named(tensors: dict[str, TensorProto], name: str) -> TensorProto:
    tensor = tensors.get(name)
    if tensor is None:
        raise ModelError(
            f"weight '{name}' | is no initializer or Constant of the model's main graph; "
            "verify against the model that was compiled"
        )
    if tensor.data_type not in _FLOATS:
        kind = type_name(tensor.data_type)
        raise ModelError(f"weight '{name}' | is {kind}; expected FLOAT, FLOAT16 or BFLOAT16")
    return tensor


def _masked_weight(tensor: TensorProto, folder: Path, item: MaskedTensor) -> NDArray[Any]:
    stored = _stored(tensor, folder, item.tensor)
    keep = item.keep().T if item.transposed else item.keep()
    if keep.shape != stored.shape:
        raise MaskError(
            f"weight '{item.tensor}' | is stored as {stored.shape}, its mask as {keep.shape}; "
            "the mask belongs to another weight"
        )
    return np.where(np.ascontiguousarray(keep), stored, stored.dtype.type(0))


def _stored(tensor: TensorProto, folder: Path, name: str) -> NDArray[Any]:
    try:
        if uses_external_data(tensor):
            return _external(tensor, folder, name)
        return numpy_helper.to_array(tensor)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"weight '{name}' | cannot be read: {error}; the data file is missing or damaged"
        ) from error


def _external(tensor: TensorProto, folder: Path, name: str) -> NDArray[Any]:
    # Not onnx's reader, which refuses linked data files, as model caches have them.
    info = ExternalDataInfo(tensor)
    location = Path(info.location)
    if location.is_absolute() or ".." in location.parts:
        raise ModelError(
            f"weight '{name}' | lies in '{location}'; expected a file inside the "
            "model's folder"
        )
    count, offset = math.prod(tensor.dims), info.offset or 0
    flat = np.fromfile(folder / location, _FLOATS[tensor.data_type], count, offset=offset)
    return flat.reshape(tuple(tensor.dims))


def _ort_value(weight: NDArray[Any], kind: int) -> Any:
    """Wraps a weight for ONNX Runtime, which takes bfloat16 as uint16 bits."""
    runtime = require("onnxruntime", "cpu")
    bits = weight.view(np.uint16) if kind == TensorProto.BFLOAT16 else weight
    return runtime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, kind)
