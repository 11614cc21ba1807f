"""Reading ONNX models whose weights stay on disk.

onnx_ir maps external data lazily; this module adds the checks and the errors, and reads
weights without keeping a whole file mapped, so that resident memory does not grow with the
model. `save_model` writes.
"""

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx_ir.serde import SerdeError

from patch_compile.errors import ModelError
from patch_compile.tiles.inspect import Rows

__all__ = [
    "FLOAT_BITS",
    "DerivedTensor",
    "FileRows",
    "all_graphs",
    "external_attributes",
    "external_files",
    "load_model",
    "metadata_of",
    "open_bits",
    "open_rows",
    "root_of",
]

# Weights are handled as unsigned integers of their own width: masking is exact in any
# float type and needs no float32 detour.
FLOAT_BITS: dict[ir.DataType, np.dtype[Any]] = {
    ir.DataType.FLOAT: np.dtype("<u4"),
    ir.DataType.FLOAT16: np.dtype("<u2"),
    ir.DataType.BFLOAT16: np.dtype("<u2"),
}


def load_model(path: Path) -> ir.Model:
    """Reads a model; weights in external files are checked but not read.

    Raises:
        ModelError: if the file is missing or no ONNX, or an external file is missing, too
            short, or outside the model's folder.
    """
    if not path.is_file():
        raise ModelError(f"model '{path}' | is not a file; give the path of an .onnx file")
    try:
        proto = onnx.load(path, format="protobuf", load_external_data=False)
        _check_supported(path, proto)
        model = ir.serde.deserialize_model(proto)
    except (DecodeError, OSError, ValueError, KeyError, TypeError, SerdeError) as error:
        raise ModelError(
            f"model '{path}' | is not a readable ONNX file: {root_of(error)}; export it again"
        ) from error
    if not model.opset_imports:
        raise ModelError(
            f"model '{path}' | is not a readable ONNX file: it is empty; export it again"
        )
    _rename_default_domain(model)
    for tensor in _external_tensors(model):
        tensor.base_dir = path.parent
        _check_external(path, tensor)
    return model


def metadata_of(path: Path) -> dict[str, str]:
    """Reads a model's metadata; of what is no model, none."""
    try:
        proto = onnx.load(path, format="protobuf", load_external_data=False)
    except (DecodeError, OSError, ValueError):
        return {}
    return {entry.key: entry.value for entry in proto.metadata_props}


def external_files(model: ir.Model) -> set[Path]:
    """The files that a model's weights lie in."""
    return {Path(tensor.path) for tensor in _external_tensors(model)}


def _check_supported(path: Path, proto: onnx.ModelProto) -> None:
    """Refuses what onnx_ir would drop in silence."""
    if any(graph.sparse_initializer for graph in _graph_protos(proto)):
        raise ModelError(
            f"model '{path}' | has sparse initializers; expected dense ones with zeros, which "
            "TensorRT reads; densify them first"
        )
    if proto.training_info:
        raise ModelError(
            f"model '{path}' | has training information; expected an inference model; export "
            "it again for inference"
        )


def _graph_protos(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """The main graph and the bodies of branches and loops, those in functions as well."""
    yield proto.graph
    waiting = [*proto.graph.node, *(n for function in proto.functions for n in function.node)]
    while waiting:
        for attribute in waiting.pop().attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield graph
                waiting += graph.node


def _rename_default_domain(model: ir.Model) -> None:
    """`ai.onnx` is another spelling of the default domain."""
    if "ai.onnx" in model.opset_imports:
        version = model.opset_imports.pop("ai.onnx")
        model.opset_imports.setdefault("", version)
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.domain == "ai.onnx":
            node.domain = ""


def root_of(error: BaseException) -> BaseException:
    """Returns the first error: onnx_ir wraps it a level at a time, and may fail doing so."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return error


def _external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    for graph in all_graphs(model):
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, DerivedTensor):
                tensor = tensor.source
            if isinstance(tensor, ir.ExternalTensor):
                yield tensor
    for _, attribute in external_attributes(model):
        yield attribute.value


def all_graphs(model: ir.Model) -> Iterator[ir.Graph]:
    """All that hold initializers: `Model.graphs` leaves out what lies in functions."""
    yield from model.graphs()
    for function in model.functions.values():
        yield from function.subgraphs()


def external_attributes(model: ir.Model) -> Iterator[tuple[ir.Node, ir.Attr]]:
    """The tensors of Constant nodes may lie in files as well; yields nodes and attributes."""
    bodies: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for body in bodies:
        for node in ir.traversal.RecursiveGraphIterator(body):
            for attribute in list(node.attributes.values()):
                if attribute.type == ir.AttributeType.TENSOR and isinstance(
                    attribute.value, ir.ExternalTensor
                ):
                    yield node, attribute


def _check_external(model: Path, tensor: ir.ExternalTensor) -> None:
    location = Path(tensor.location)
    subject = f"model '{model}', weight '{tensor.name}'"
    if location.is_absolute() or ".." in location.parts:
        raise ModelError(
            f"{subject} | lies in '{location}'; expected a file inside the model's folder"
        )
    try:
        status = os.stat(tensor.path)
    except OSError as error:
        raise ModelError(
            f"{subject} | lies in '{location}', which cannot be read ({error.strerror}); "
            "put the data file beside the model"
        ) from error
    _check_links(subject, model, tensor, status.st_nlink)
    _check_extent(subject, tensor, status.st_size)


def _check_links(subject: str, model: Path, tensor: ir.ExternalTensor, links: int) -> None:
    # onnx_ir refuses these too, but only when it writes, and not where we map the file.
    if not Path(tensor.path).resolve().is_relative_to(model.parent.resolve()):
        raise ModelError(
            f"{subject} | lies in '{tensor.location}', a link that leads out of the model's "
            "folder; copy the file itself there"
        )
    if links > 1:
        raise ModelError(
            f"{subject} | lies in '{tensor.location}', which has {links} hard links; copy the "
            "file to have it once"
        )


def _check_extent(subject: str, tensor: ir.ExternalTensor, size: int) -> None:
    if tensor.dtype in (ir.DataType.UNDEFINED, ir.DataType.STRING):
        raise ModelError(
            f"{subject} | is {tensor.dtype.name} in an external file; expected numbers; the "
            "model is damaged"
        )
    stated = tensor.nbytes if tensor.length is None else tensor.length
    if stated != tensor.nbytes:
        raise ModelError(
            f"{subject} | has {stated} bytes in '{tensor.location}'; its shape needs "
            f"{tensor.nbytes}; the model is damaged"
        )
    start = tensor.offset or 0
    end = start + tensor.nbytes
    if start < 0:
        raise ModelError(
            f"{subject} | starts at byte {start} of '{tensor.location}'; expected 0 or more; "
            "the model is damaged"
        )
    if end > size:
        raise ModelError(
            f"{subject} | ends at byte {end} of '{tensor.location}', which has {size}; the "
            "data file is truncated or belongs to another model"
        )


def open_bits(tensor: ir.TensorProtocol) -> NDArray[Any]:
    """Returns a float tensor's elements as unsigned integers, in its stored shape.

    External data is mapped for as long as the array lives, not for the model's life.
    """
    dtype = FLOAT_BITS[tensor.dtype]
    shape = tuple(int(d) for d in tensor.shape.numpy())
    if not isinstance(tensor, ir.ExternalTensor) or tensor.nbytes == 0:
        return _inline_bits(tensor, dtype, shape)
    return np.memmap(tensor.path, dtype, "r", offset=tensor.offset or 0, shape=shape)


@dataclass(frozen=True)
class FileRows:
    """Rows of a 2-D tensor in a file, read when they are sliced.

    A mapped file costs a page fault for every few pages, each time it is mapped, and every
    page counts as resident; plain reads into a strip's memory cost neither.

    Attributes:
        path: the file.
        dtype: unsigned integers of the element's width.
        offset: of the tensor, in bytes.
        shape: (rows, columns).
    """

    path: str
    dtype: np.dtype[Any]
    offset: int
    shape: tuple[int, int]

    def __getitem__(self, rows: slice, /) -> NDArray[Any]:
        """Reads consecutive rows into an array of the caller's own."""
        start, stop, _ = rows.indices(self.shape[0])
        array = np.empty((max(0, stop - start), self.shape[1]), self.dtype)
        at = self.offset + start * self.shape[1] * self.dtype.itemsize
        with Path(self.path).open("rb", buffering=0) as file:
            file.seek(at)
            if _filled(file, array) < array.nbytes:
                raise ModelError(
                    f"data file '{self.path}' | ended at row {start} of a weight; it was cut "
                    "short while it was read; restore it"
                )
            # Of no bytes the system would take all that follow.
            if array.size and hasattr(os, "posix_fadvise"):
                # The disk reads the next strip while this one is worked on.
                os.posix_fadvise(
                    file.fileno(), at + array.nbytes, array.nbytes, os.POSIX_FADV_WILLNEED
                )
        return array


def _filled(file: io.FileIO, array: NDArray[Any]) -> int:
    """Reads into an array until it is full or the file ends; the number of bytes."""
    left = array.reshape(-1).view(np.uint8).data
    while left and (count := file.readinto(left)):
        left = left[count:]
    return array.nbytes - len(left)


class DerivedTensor(ir.LazyTensor):
    """A tensor that is made from a stored one, in blocks, each time it is read.

    Attributes:
        source: the stored one.
    """

    source: ir.TensorProtocol

    def rows(self) -> Rows:
        """Returns its rows, (first axis, all others), as unsigned integers."""
        raise NotImplementedError


def open_rows(tensor: ir.TensorProtocol) -> Rows:
    """Returns a 2-D float tensor's rows as unsigned integers, in its stored shape."""
    if isinstance(tensor, DerivedTensor):
        return tensor.rows()
    if not isinstance(tensor, ir.ExternalTensor):
        return open_bits(tensor)
    first, second = (int(d) for d in tensor.shape.numpy())
    dtype = FLOAT_BITS[tensor.dtype]
    return FileRows(tensor.path, dtype, tensor.offset or 0, (first, second))


def _inline_bits(
    tensor: ir.TensorProtocol, dtype: np.dtype[Any], shape: tuple[int, ...]
) -> NDArray[Any]:
    try:
        return np.asarray(tensor.numpy()).view(dtype).reshape(shape)
    except ValueError as error:
        raise ModelError(
            f"weight '{tensor.name}' | has data that does not fill its shape {shape}: "
            f"{error}; the model is damaged"
        ) from error
