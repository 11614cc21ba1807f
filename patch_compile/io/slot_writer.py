"""Tensors written to their places in data files, several at once."""

import os
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

import onnx_ir as ir
from numpy.typing import NDArray

from patch_compile.errors import ModelError
from patch_compile.io.layout import Slot
from patch_compile.io.onnx_model import open_rows
from patch_compile.io.piece_tensor import StripTensor
from patch_compile.io.stored_weight import Key, RowWatch, in_order, rows_in_a_strip
from patch_compile.tiles.inspect import Rows

__all__ = ["Bytes", "SlotWriter", "units"]

Progress = Callable[[int, int, str], None]

_WORKERS = min(4, os.cpu_count() or 1)
_COPY_BYTES = 2**24


class Bytes(int):
    """A count of bytes, which a progress bar shows as such."""


class SlotWriter:
    """Writes tensors to their places.

    Tensors that are made of one stored weight are made in one pass over it, which its watch
    sees.
    """

    def __init__(
        self,
        folder: Path,
        total: int,
        progress: Progress | None,
        watches: Mapping[int, RowWatch],
    ) -> None:
        """Prepares the writing of `total` bytes; see `save_model.save_model`."""
        self._folder, self._total, self._progress = folder, total, progress
        self._watches = dict(watches)
        self._done, self._lock = 0, Lock()

    def write(self, slots: Sequence[Slot]) -> None:
        """Writes all data files."""
        for file, size in {slot.file: slot.end for slot in slots}.items():
            # Sized first: threads write anywhere in it.
            with (self._folder / file).open("wb") as made:
                made.truncate(size)
        pool = ThreadPoolExecutor(_WORKERS)
        try:
            futures = [pool.submit(self._write_unit, unit) for unit in units(slots)]
            for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                future.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _write_unit(self, unit: Sequence[Slot]) -> None:
        with ExitStack() as stack:
            files = {
                name: stack.enter_context((self._folder / name).open("r+b"))
                for name in {slot.file for slot in unit}
            }
            if isinstance(unit[0].tensor, StripTensor):
                self._write_strips(unit, files)
                return
            (slot,) = unit
            files[slot.file].seek(slot.offset)
            self._write_whole(slot, files[slot.file])

    def _write_strips(self, unit: Sequence[Slot], files: Mapping[str, BinaryIO]) -> None:
        tensors = [slot.tensor for slot in unit if isinstance(slot.tensor, StripTensor)]
        weights = {weight.key: weight for tensor in tensors for weight in tensor.weights}
        watches = {key: self._watches.pop(key[0], None) for key in weights}
        cutters = [tensor.cutter() for tensor in tensors]
        rows = {key: weight.rows(watches[key]) for key, weight in weights.items()}
        for start, stop, strips in _strips(rows):
            for slot, cut in zip(unit, cutters, strict=True):
                for row, block in cut(strips, start, stop):
                    files[slot.file].seek(slot.offset + row * block[0].nbytes)
                    self._put(block, slot.file, files[slot.file])
        for watch in watches.values():
            if watch is not None:
                watch.finish()

    def _write_whole(self, slot: Slot, file: BinaryIO) -> None:
        """Writes a tensor that is no strips of others."""
        watch = self._watches.pop(id(slot.tensor), None)
        if watch is not None:
            for strip in in_order(open_rows(slot.tensor), watch):
                self._put(strip, slot.file, file)
            watch.finish()
        elif isinstance(slot.tensor, ir.ExternalTensor):
            self._copy(slot.tensor, slot, file)
        else:
            _write_made(slot.tensor, file)
            self._count(slot.tensor.nbytes, slot.file)

    def _put(self, block: NDArray[Any], name: str, file: BinaryIO) -> None:
        file.write(block.data)
        self._count(block.nbytes, name)

    def _copy(self, tensor: ir.ExternalTensor, slot: Slot, file: BinaryIO) -> None:
        with Path(tensor.path).open("rb") as source:
            done = 0
            while done < tensor.nbytes:
                count = _copied(
                    source,
                    (tensor.offset or 0) + done,
                    file,
                    slot.offset + done,
                    min(_COPY_BYTES, tensor.nbytes - done),
                )
                self._count(count, slot.file)
                done += count

    def _count(self, count: int, name: str) -> None:
        with self._lock:
            self._done += count
            if self._progress is not None:
                self._progress(Bytes(self._done), Bytes(self._total), f"writing {name}")


def units(slots: Sequence[Slot]) -> list[list[Slot]]:
    """Groups slots whose tensors are made of the same stored weights, in their order."""
    found: dict[Hashable, list[Slot]] = {}
    for slot in slots:
        keys = _sources(slot)
        near = {id(found[key]): found[key] for key in keys if key in found}
        unit = [*(other for part in near.values() for other in part), slot]
        found.update(dict.fromkeys([key for other in unit for key in _sources(other)], unit))
    return list({id(unit): unit for unit in found.values()}.values())


def _sources(slot: Slot) -> list[Hashable]:
    if isinstance(slot.tensor, StripTensor):
        return [weight.key for weight in slot.tensor.weights]
    return [id(slot)]


def _strips(
    rows: Mapping[Key, Rows],
) -> Iterator[tuple[int, int, dict[Key, NDArray[Any]]]]:
    """Reads weights (K, N) of one K side by side: start and stop along K, and the strips."""
    height = max(each.shape[0] for each in rows.values())
    widths = [each.shape[1] for each in rows.values()]
    # Of many weights a strip each of a few rows would be all overhead.
    width = min(sum(widths), 8 * max(widths))
    step = rows_in_a_strip(width, max(each[0:0].itemsize for each in rows.values()))
    for start in range(0, height, step):
        stop = min(start + step, height)
        yield start, stop, {key: each[start:stop] for key, each in rows.items()}


def _write_made(tensor: ir.TensorProtocol, file: BinaryIO) -> None:
    if isinstance(tensor, ir.Tensor | ir.LazyTensor):
        tensor.tofile(file)
    else:
        file.write(tensor.tobytes())


def _copied(
    source: BinaryIO, read_at: int, target: BinaryIO, write_at: int, count: int
) -> int:
    """Copies up to `count` bytes between files, inside the kernel where it can; how many."""
    if hasattr(os, "copy_file_range"):
        with suppress(OSError):
            copied = os.copy_file_range(
                source.fileno(), target.fileno(), count, read_at, write_at
            )
            if copied:
                return copied
    source.seek(read_at)
    block = source.read(count)
    if not block:
        raise ModelError(
            f"data file '{source.name}' | ended at byte {read_at}; it was cut short while it "
            "was read; restore it"
        )
    target.seek(write_at)
    target.write(block)
    return len(block)
