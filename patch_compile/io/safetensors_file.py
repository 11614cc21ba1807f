"""Arrays of a safetensors file, read and written one at a time.

The library validates a file and maps it whole, and writes what is all in memory; a mask file
of a large model would then be resident. This reader takes the offsets once and reads each
array when it is wanted, and the writer makes each when its turn comes.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from patch_compile.errors import InternalError, MaskError
from patch_compile.io.unchanged import Signature, signature

__all__ = ["LazyArray", "SafetensorsFile", "write_safetensors"]

_DTYPES: dict[str, np.dtype[Any]] = {
    "U8": np.dtype(np.uint8),
    "F32": np.dtype("<f4"),
    "I32": np.dtype("<i4"),
}


@dataclass(frozen=True)
class SafetensorsFile:
    """The file's header.

    Attributes:
        path: the file.
        names: its arrays: element type, shape, and (begin, end) in the data part.
        start: where the data part begins, in bytes.
        opened: what the file was when it was opened.
    """

    path: Path
    names: Mapping[str, Mapping[str, Any]]
    start: int
    opened: Signature

    @classmethod
    def open(cls, path: Path) -> "SafetensorsFile":
        """Validates a file and reads its header.

        Raises:
            MaskError: if it is no safetensors file, or truncated.
        """
        opened = signature(path)
        try:
            with safe_open(path, framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            raise MaskError(f"masks '{path}' | are no safetensors file: {error}") from error
        with path.open("rb") as file:
            # The format: a little-endian u64 length, then that many bytes of JSON.
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
        # Between the two looks at it the file may have become another.
        if signature(path) != opened:
            raise MaskError(f"masks '{path}' | were changed while being read; read them again")
        header.pop("__metadata__", None)
        return cls(path, header, 8 + size, opened)

    def lazy(
        self, name: str, dtype: Any, shape: tuple[int, int]
    ) -> Callable[[], NDArray[Any]]:
        """Checks an array against its header and returns the function that reads it.

        Raises:
            MaskError: if it is missing or has another element type or shape.
        """
        entry = self.names.get(name)
        if entry is None:
            raise MaskError(f"masks '{self.path}' | lack '{name}'; they belong to other masks")
        found = (_DTYPES.get(entry["dtype"]), tuple(entry["shape"]))
        if found != (np.dtype(dtype), shape):
            raise MaskError(
                f"masks '{self.path}' | '{name}' is {entry['dtype']} {found[1]}; expected "
                f"{np.dtype(dtype)} {shape}; they belong to another model"
            )
        return partial(self._read, np.dtype(dtype), shape, entry["data_offsets"][0])

    def _read(self, dtype: Any, shape: tuple[int, int], begin: int) -> NDArray[Any]:
        count = shape[0] * shape[1]
        try:
            array = np.fromfile(self.path, dtype, count, offset=self.start + begin)
        except OSError as error:
            raise MaskError(
                f"masks '{self.path}' | cannot be read: {error.strerror}; put the file back"
            ) from error
        if array.size != count or signature(self.path) != self.opened:
            raise MaskError(
                f"masks '{self.path}' | were changed while being read; read them again"
            )
        return array.reshape(shape)


@dataclass(frozen=True)
class LazyArray:
    """An array that is made when it is written.

    Attributes:
        name: in the file.
        dtype: uint8, float32 or int32.
        shape: of what `make` returns.
        make: returns it.
    """

    name: str
    dtype: Any
    shape: tuple[int, ...]
    make: Callable[[], NDArray[Any]]

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return math.prod(self.shape) * int(np.dtype(self.dtype).itemsize)


def write_safetensors(path: Path, arrays: Sequence[LazyArray]) -> str:
    """Writes a safetensors file array by array.

    Returns:
        The sha256 of the file.

    Raises:
        OSError: if the file cannot be written.
    """
    words = {dtype: word for word, dtype in _DTYPES.items()}
    # As the library does: the widest elements first, so that every array is aligned.
    ordered = sorted(arrays, key=lambda array: (-np.dtype(array.dtype).itemsize, array.name))
    header, at = {}, 0
    for array in ordered:
        header[array.name] = {
            "dtype": words[np.dtype(array.dtype)],
            "shape": list(array.shape),
            "data_offsets": [at, at + array.nbytes],
        }
        at += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    total = hashlib.sha256()
    with path.open("wb") as file:
        for part in (len(text).to_bytes(8, "little"), text):
            file.write(part)
            total.update(part)
        for array in ordered:
            made = np.ascontiguousarray(array.make(), array.dtype)
            if made.shape != array.shape:
                raise InternalError(
                    f"array '{array.name}' | is {made.shape}; it was to be {array.shape}"
                )
            file.write(made.data)
            total.update(made.data)
    return total.hexdigest()
