"""Writing ONNX models whose weights are larger than the memory.

Every stored weight is read once, in strips of K: all that is made of it is written from one
strip, at the place that the layout gives, and its digest is taken on the way. onnx_ir writes
tensor after tensor, which reads a weight once for each of its pieces, and hashing is a read of
its own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir

from patch_compile.errors import ModelError
from patch_compile.io.layout import Slot, lay_out
from patch_compile.io.onnx_model import all_graphs, external_attributes, root_of
from patch_compile.io.slot_writer import SlotWriter
from patch_compile.io.stored_weight import RowWatch

__all__ = ["save_model"]

Progress = Callable[[int, int, str], None]

# Smaller tensors (shapes, indices) stay in the .onnx file, where shape inference sees them.
_INLINE_BYTES = 256


def save_model(
    model: ir.Model,
    path: Path,
    progress: Progress | None = None,
    *,
    shard_bytes: int | None = None,
    watches: Mapping[int, RowWatch] | None = None,
) -> None:
    """Writes `path` and, beside it, the weights as a stream in `<name>.data`.

    The caller stages the folder; see `atomic.staged_folder`.

    Args:
        model: left unchanged.
        path: the .onnx file.
        progress: called with (bytes done, bytes in all, what), from several threads in turn.
        shard_bytes: write several data files of at most this size; see `layout.lay_out`.
        watches: see the rows of stored weights as they are read, by `id` of the tensor. What
            is made of a weight may be small enough for the .onnx file; its watch sees nothing.

    Raises:
        ModelError: if the folder cannot be written or the disk is full, or the model holds
            what ONNX has no form for.
    """
    slots = lay_out(list(_large(model)), f"{path.name}.data", shard_bytes)
    total = sum(slot.tensor.nbytes for slot in slots)
    try:
        SlotWriter(path.parent, total, progress, watches or {}).write(slots)
        with _replaced(model, slots, path.parent):
            path.write_bytes(ir.serde.serialize_model(model).SerializeToString())
    except OSError as error:
        raise ModelError(
            f"output '{path.parent}' | cannot be written: {error.strerror}; free some space "
            f"({total / 1e9:.1f} GB are needed) or choose another folder"
        ) from error
    except ir.serde.SerdeError as error:
        # What its file said and was carried along, as an attribute of no type.
        raise ModelError(
            f"model | holds what ONNX cannot store: {root_of(error)}; export it again"
        ) from error


def _large(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Tensors that go to the data files, each once."""
    values = [value.const_value for value in _initializers(model)]
    attributes = [attribute.as_tensor() for _, attribute in external_attributes(model)]
    seen = {id(tensor): tensor for tensor in (*values, *attributes) if tensor is not None}
    for tensor in seen.values():
        if tensor.nbytes > _INLINE_BYTES and tensor.dtype != ir.DataType.STRING:
            yield tensor


def _initializers(model: ir.Model) -> Iterator[ir.Value]:
    for graph in all_graphs(model):
        yield from graph.initializers.values()


@contextmanager
def _replaced(model: ir.Model, slots: Sequence[Slot], folder: Path) -> Iterator[None]:
    """Lets tensors be those in the new files, and small ones of old files be in memory."""
    placed = {id(slot.tensor): slot.placed(folder) for slot in slots}

    def now(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        return placed[id(tensor)] if id(tensor) in placed else _in_memory(tensor)

    values = [(value, value.const_value) for value in _initializers(model)]
    attributes = list(external_attributes(model))
    try:
        for value, tensor in values:
            value.const_value = None if tensor is None else now(tensor)
        for node, attribute in attributes:
            node.attributes[attribute.name] = ir.AttrTensor(
                attribute.name, now(attribute.as_tensor())
            )
        yield
    finally:
        for value, tensor in values:
            value.const_value = tensor
        for node, attribute in attributes:
            node.attributes[attribute.name] = attribute


def _in_memory(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor
    copied = ir.Tensor(tensor.numpy().copy(), name=tensor.name, dtype=tensor.dtype)
    tensor.release()
    return copied
