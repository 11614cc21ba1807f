"""Where each tensor of a model lies in its data files."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

__all__ = ["Slot", "drop_stale", "is_data_of", "lay_out"]


@dataclass(frozen=True)
class Slot:
    """The place of one tensor.

    Attributes:
        tensor: what lies there.
        file: name of a file beside the model.
        offset: of its first byte there.
    """

    tensor: ir.TensorProtocol
    file: str
    offset: int

    @property
    def end(self) -> int:
        """The byte after its last."""
        return self.offset + self.tensor.nbytes

    def placed(self, folder: Path) -> ir.ExternalTensor:
        """Returns the tensor as it lies there."""
        shape = ir.Shape([int(size) for size in self.tensor.shape.numpy()])
        return ir.ExternalTensor(
            self.file,
            self.offset,
            self.tensor.nbytes,
            self.tensor.dtype,
            shape=shape,
            name=self.tensor.name or "",
            base_dir=folder,
        )


def lay_out(
    tensors: Sequence[ir.TensorProtocol], name: str, shard_bytes: int | None = None
) -> tuple[Slot, ...]:
    """Packs tensors densely, in their order.

    Args:
        tensors: each once.
        name: of the one file, or what those of several files are called after.
        shard_bytes: no file is larger, but for one that holds a single tensor that is; None
            makes one file.
    """
    shards: list[list[tuple[ir.TensorProtocol, int]]] = [[]]
    at = 0
    for tensor in tensors:
        if shard_bytes is not None and shards[-1] and at + tensor.nbytes > shard_bytes:
            shards.append([])
            at = 0
        shards[-1].append((tensor, at))
        at += tensor.nbytes
    return tuple(
        Slot(tensor, _shard_name(name, number, len(shards)), offset)
        for number, shard in enumerate(shards, start=1)
        for tensor, offset in shard
    )


def _shard_name(name: str, number: int, count: int) -> str:
    """Names a file of several as the Hugging Face hub does: `m-00001-of-00002.data`."""
    if count == 1:
        return name
    stem, dot, suffix = name.rpartition(".")
    return f"{stem}-{number:05}-of-{count:05}{dot}{suffix}"


def is_data_of(model: str, name: str) -> bool:
    """Whether a file has a name that the data of a model may get, in one file or several."""
    pattern = re.escape(model) + r"(-\d{5}-of-\d{5})?\.data"
    return re.fullmatch(pattern, name) is not None


def drop_stale(folder: Path, model: str, fresh: Collection[str]) -> None:
    """Removes a model's data files that an earlier run left and this one did not write."""
    for file in folder.iterdir():
        if file.name not in fresh and is_data_of(model, file.name):
            file.unlink(missing_ok=True)
