"""What is streamed is what tensor after tensor would be, and every weight is read once."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from patch_compile.errors import ModelError
from patch_compile.io import piece_tensor, slot_writer, stored_weight
from patch_compile.io.layout import Slot, lay_out
from patch_compile.io.onnx_model import FileRows
from patch_compile.io.piece_tensor import PieceTensor, StackedTensor
from patch_compile.io.slot_writer import SlotWriter, units
from patch_compile.io.stored_weight import StoredWeight
from patch_compile.tiles.pattern import pack_keep
from patch_compile.tiles.plan import Piece, Span

K = 48
WIDTHS = (8, 20, 12)
COLUMNS: tuple[tuple[Span, ...], ...] = (
    ((0, K),),
    ((0, 16), (28, K)),
    ((16, 28),),
    # Out of order, as a weight that takes the order of the products before it.
    ((28, K), (4, 20), (0, 4)),
)


class Watch:
    """Collects what it sees."""

    def __init__(self) -> None:
        self.seen: list[NDArray[Any]] = []
        self.finished = 0

    def update(self, rows: NDArray[Any]) -> None:
        self.seen.append(rows.copy())

    def finish(self) -> None:
        self.finished += 1


def external(folder: Path, array: NDArray[Any], name: str) -> ir.ExternalTensor:
    (folder / name).write_bytes(b"ab" + array.tobytes())
    shape = ir.Shape(array.shape)
    kind = ir.DataType.FLOAT16
    return ir.ExternalTensor(
        name, 2, array.nbytes, kind, shape=shape, name=name, base_dir=folder
    )


def weights(folder: Path, rng: np.random.Generator) -> list[tuple[StoredWeight, Any, Any]]:
    """Weights in files, in both layouts: as stored, (N, K) bits, and keep mask."""
    made = []
    for index, n in enumerate(WIDTHS):
        bits = rng.integers(1, 2**16, (n, K), np.uint16)
        transposed = index != 1
        stored = np.ascontiguousarray(bits.T) if transposed else bits
        tensor = external(folder, stored.view(np.float16), f"w{index}")
        made.append((StoredWeight(tensor, transposed), bits, rng.random((n, K)) < 0.5))
    return made


def pieces(
    made: list[tuple[StoredWeight, Any, Any]], seed: int
) -> list[tuple[ir.TensorProtocol, bytes]]:
    """Tensors over the weights, each with the bytes that numpy makes of the whole weight."""
    rng = np.random.default_rng(seed)
    found: list[tuple[ir.TensorProtocol, bytes]] = []
    for count in range(int(rng.integers(1, 6))):
        columns = COLUMNS[int(rng.integers(len(COLUMNS)))]
        chosen = rng.permutation(len(made))[: int(rng.integers(1, 4))]
        parts, blocks = [], []
        for weight, bits, keep in (made[int(index)] for index in chosen):
            edge = int(rng.integers(1, bits.shape[0]))
            rows: tuple[Span, ...] = (
                ((0, edge),) if rng.random() < 0.5 else ((edge, len(bits)),)
            )
            masked = rng.random() < 0.7
            packed = partial(pack_keep, keep) if masked else None
            parts.append(PieceTensor(weight, Piece("dense", rows, columns), packed, "p"))
            whole = np.where(keep, bits, 0) if masked else bits
            taken = [i for a, b in columns for i in range(a, b)]
            blocks.append(whole[rows[0][0] : rows[0][1], taken].T.astype(np.uint16))
        tensor = parts[0] if len(parts) == 1 else StackedTensor(parts, f"s{count}")
        found.append((tensor, np.concatenate(blocks, axis=1).tobytes()))
    return found


def check(folder: Path, seed: int, strip: int, limit: int | None = None) -> None:
    """Streams random tensors and compares every byte with the whole-tensor reference."""
    rng = np.random.default_rng(seed)
    made = weights(folder, rng)
    plain = rng.integers(0, 256, 700, np.uint8)
    wanted = pieces(made, seed)
    wanted.append((ir.Tensor(plain, name="plain"), plain.tobytes()))
    stored = made[0][1].T.tobytes()
    wanted.append((made[0][0].tensor, stored))
    slots = lay_out([tensor for tensor, _ in wanted], "out.data", limit)
    watches = {id(weight.tensor): Watch() for weight, _, _ in made}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored_weight, "_STRIP_BYTES", strip)
        SlotWriter(folder, 0, None, watches).write(slots)
    for slot, (_, content) in zip(slots, wanted, strict=True):
        found = (folder / slot.file).read_bytes()[slot.offset : slot.end]
        assert found == content
    read = {
        w.key
        for slot in slots
        if isinstance(slot.tensor, PieceTensor | StackedTensor)
        for w in slot.tensor.weights
    } | {made[0][0].key}
    for weight, bits, _ in made:
        watch = watches[id(weight.tensor)]
        assert watch.finished == (weight.key in read)
        if watch.finished:
            seen = np.concatenate(watch.seen)
            np.testing.assert_array_equal(seen, bits.T if weight.transposed else bits)


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([1, 200, 2**20]),
    st.none() | st.integers(1, 4000),
)
def test_stream_is_the_whole_tensor_reference_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, seed: int, strip: int, limit: int | None
) -> None:
    check(tmp_path_factory.mktemp("stream"), seed, strip, limit)


def _always_even(bits: NDArray[np.uint8], first: int, last: int) -> NDArray[np.uint8]:
    return CODES(bits, first // 2 * 2, first // 2 * 2 + last - first)


def _loses_the_end(rows: Any) -> Any:
    whole = list(STRIPS(rows))
    yield from whole[:-1] or whole


def _every_tensor_alone(slots: Any) -> list[list[Slot]]:
    return [[slot] for slot in slots]


CODES, STRIPS = piece_tensor._codes, slot_writer._strips


@pytest.mark.parametrize(
    ("target", "attribute", "mutant"),
    [
        (piece_tensor, "_codes", _always_even),
        (slot_writer, "_strips", _loses_the_end),
        # The bytes are right; but each tensor reads its weights again, unseen.
        (slot_writer, "units", _every_tensor_alone),
    ],
)
def test_planted_mutant_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: Any, attribute: str, mutant: Any
) -> None:
    reads: list[int] = []
    read = FileRows.__getitem__

    def counted(self: FileRows, rows: slice) -> NDArray[Any]:
        reads.append(rows.stop - rows.start)
        return read(self, rows)

    monkeypatch.setattr(FileRows, "__getitem__", counted)

    def run(once: int | None) -> int:
        reads.clear()
        for seed in range(6):
            check(tmp_path, seed, 200)
        assert once in (None, sum(reads))
        return sum(reads)

    once = run(None)
    monkeypatch.setattr(target, attribute, mutant)
    with pytest.raises(AssertionError):
        run(once)


def test_tensors_of_shared_weights_are_one_unit(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    (a, *_), (b, *_), (c, *_) = weights(tmp_path, rng)
    whole: tuple[Span, ...] = ((0, K),)
    one, two, three, four = (
        PieceTensor(weight, Piece("dense", ((0, 4),), whole), None, "p")
        for weight in (a, b, c, c)
    )
    both = StackedTensor([one, two], "s")
    plain = ir.Tensor(np.zeros(4), name="t")
    slots = lay_out([one, three, two, plain, both, four], "d")
    names = [[slots.index(slot) for slot in unit] for unit in units(slots)]
    assert names == [[0, 2, 4], [1, 5], [3]]


@pytest.mark.parametrize("failure", ["missing", "failing", "short"])
def test_copies_do_without_the_kernel_s_help(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    content = np.arange(5000, dtype=np.uint16)
    tensor = external(tmp_path, content.view(np.float16), "w")

    def fails(*_: Any) -> int:
        raise OSError(18, "Invalid cross-device link")

    if failure == "missing":
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    elif failure == "failing":
        monkeypatch.setattr(os, "copy_file_range", fails, raising=False)
    else:
        copy = os.copy_file_range
        monkeypatch.setattr(
            os, "copy_file_range", lambda a, b, n, *at: copy(a, b, min(n, 7), *at)
        )
    seen: list[tuple[int, int, str]] = []
    SlotWriter(tmp_path, content.nbytes, lambda *step: seen.append(step), {}).write(
        lay_out([tensor], "out")
    )
    assert (tmp_path / "out").read_bytes() == content.tobytes()
    assert seen[-1] == (content.nbytes, content.nbytes, "writing out")


@pytest.mark.parametrize("watched", [False, True])
def test_file_that_shrinks_while_it_is_read_is_one_line(tmp_path: Path, watched: bool) -> None:
    tensor = external(tmp_path, np.zeros((40, 50), np.float16), "w")
    os.truncate(tmp_path / "w", 3000)
    watches = {id(tensor): Watch()} if watched else {}
    with pytest.raises(ModelError, match="cut short while it was read"):
        SlotWriter(tmp_path, 0, None, watches).write(lay_out([tensor], "out"))
