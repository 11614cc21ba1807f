"""A piece is np.where(keep, weight, 0) cut to its rows and columns, byte for byte."""

import io
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from patch_compile.errors import InternalError
from patch_compile.io import stored_weight
from patch_compile.io.piece_tensor import PieceTensor, StackedTensor
from patch_compile.io.stored_weight import StoredWeight
from patch_compile.tiles.pattern import pack_keep, top2_of_4
from patch_compile.tiles.plan import Piece, Role, Span
from tests.support import FLOATS, random_weight

DATA_TYPES = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
}


def stored(weight: NDArray[Any], transposed: bool) -> StoredWeight:
    array = np.ascontiguousarray(weight.T) if transposed else weight
    return StoredWeight(ir.tensor(array, name="w"), transposed)


@st.composite
def spans(draw: st.DrawFn, size: int, step: int) -> tuple[Span, ...]:
    """Sorted, disjoint spans of an axis whose edges are multiples of `step`, or its end."""
    edges = draw(st.sets(st.integers(0, size // step), min_size=2, max_size=6)) or {0}
    points = sorted({min(step * edge, size) for edge in edges} | {size})
    pairs = list(zip(points[::2], points[1::2], strict=False))
    return tuple(pairs) or ((0, size),)


@st.composite
def pieces(draw: st.DrawFn) -> tuple[NDArray[Any], NDArray[np.bool_], Piece]:
    n = draw(st.integers(1, 24))
    k = draw(st.integers(4, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    weight = random_weight(rng, n, k, draw(st.sampled_from(list(FLOATS))))
    special = np.array([np.nan, np.inf, -0.0, -np.inf], weight.dtype)
    weight = np.where(rng.random((n, k)) < 0.2, rng.choice(special, (n, k)), weight)
    roles: list[Role] = ["dense", "sparse24"]
    role = draw(st.sampled_from(roles))
    if role == "sparse24":
        k -= k % 4
        weight, keep = weight[:, :k], top2_of_4(rng.random((n, k)))
    else:
        keep = rng.random((n, k)) < 0.5
    piece = Piece(role, draw(spans(n, 1)), draw(spans(k, 4)))
    return np.ascontiguousarray(weight), keep, piece


def expected(
    weight: NDArray[Any], keep: NDArray[np.bool_] | None, piece: Piece
) -> NDArray[Any]:
    """The piece as unsigned integers, (K', N'): what goes is +0, what stays keeps its bits."""
    bits = weight.view(f"u{weight.itemsize}")
    masked = bits if keep is None else np.where(keep, bits, np.zeros_like(bits))
    rows = np.concatenate([np.arange(*span) for span in piece.rows])
    columns = np.concatenate([np.arange(*span) for span in piece.columns])
    block: NDArray[Any] = masked[np.ix_(rows, columns)].T
    return block


@given(pieces(), st.booleans(), st.sampled_from([1, 64, 2**20]))
def test_piece_is_the_masked_block_bit_for_bit(
    problem: tuple[NDArray[Any], NDArray[np.bool_], Piece], transposed: bool, strip: int
) -> None:
    weight, keep, piece = problem
    packed = pack_keep(keep)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored_weight, "_STRIP_BYTES", strip)
        tensor = PieceTensor(stored(weight, transposed), piece, lambda: packed, "p")
        values = tensor.numpy()
        file = io.BytesIO()
        tensor.tofile(file)
    wanted = expected(weight, keep, piece)
    assert values.dtype == weight.dtype
    assert tuple(tensor.shape.numpy()) == values.shape == wanted.shape == piece.shape[::-1]
    np.testing.assert_array_equal(values.view(wanted.dtype), wanted)
    assert file.getvalue() == tensor.tobytes() == wanted.tobytes()
    assert tensor.nbytes == len(file.getvalue())


@given(pieces(), st.booleans())
def test_piece_without_a_mask_keeps_every_bit(
    problem: tuple[NDArray[Any], NDArray[np.bool_], Piece], transposed: bool
) -> None:
    weight, _, piece = problem
    whole = Piece("dense", piece.rows, piece.columns)
    tensor = PieceTensor(stored(weight, transposed), whole, None, "p")
    wanted = expected(weight, None, whole)
    np.testing.assert_array_equal(tensor.numpy().view(wanted.dtype), wanted)


@pytest.mark.parametrize("dtype", FLOATS)
def test_piece_has_the_element_type_of_its_weight(dtype: str) -> None:
    weight = random_weight(np.random.default_rng(0), 4, 8, dtype)
    piece = Piece("dense", ((0, 4),), ((0, 8),))
    tensor = PieceTensor(stored(weight, True), piece, None, "p")
    assert tensor.dtype == DATA_TYPES[dtype]
    assert tensor.name == "p"


def test_many_scattered_rows_are_taken() -> None:
    """From 64 spans on they are taken by index; both ways must agree."""
    weight = random_weight(np.random.default_rng(0), 300, 8)
    for count in (2, 63, 64, 100):
        rows = tuple((3 * i, 3 * i + 2) for i in range(count))
        piece = Piece("dense", rows, ((0, 8),))
        tensor = PieceTensor(stored(weight, True), piece, None, "p")
        wanted = expected(weight, None, piece)
        np.testing.assert_array_equal(tensor.numpy().view(np.uint32), wanted)


@pytest.mark.parametrize("kept", [2, 3, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_sparse_piece_that_is_not_24_is_never_handed_out(kept: int, transposed: bool) -> None:
    weight = random_weight(np.random.default_rng(0), 8, 16)
    keep = np.zeros((8, 16), np.bool_)
    keep[5, 12 : 12 + kept] = True
    packed = pack_keep(keep)
    piece = Piece("sparse24", ((0, 8),), ((0, 16),))
    tensor = PieceTensor(stored(weight, transposed), piece, lambda: packed, "p")
    if kept == 2:
        assert np.count_nonzero(tensor.numpy()) == 2
        return
    for read in (tensor.numpy, tensor.tobytes, lambda: tensor.tofile(io.BytesIO())):
        with pytest.raises(InternalError, match=r"piece 'p' \| is not 2:4 from row 0 of K"):
            read()


def test_full_groups_outside_a_sparse_piece_do_not_matter() -> None:
    weight = random_weight(np.random.default_rng(0), 8, 16)
    keep = np.zeros((8, 16), np.bool_)
    keep[:4] = True
    keep[:, :4] = True
    packed = pack_keep(keep)
    piece = Piece("sparse24", ((4, 8),), ((4, 16),))
    tensor = PieceTensor(stored(weight, True), piece, lambda: packed, "p")
    assert not np.any(tensor.numpy())


@pytest.mark.parametrize("transposed", [False, True])
def test_stored_weight_knows_its_shape_and_bits(transposed: bool) -> None:
    weight = random_weight(np.random.default_rng(0), 3, 5)
    one = stored(weight, transposed)
    assert one.shape == (3, 5)
    np.testing.assert_array_equal(one.bits().view(np.float32), weight.T)


def test_each_read_makes_the_piece_again() -> None:
    """Memory must not grow with the model, so nothing is kept."""
    reads: list[Role] = []
    packed = pack_keep(np.ones((4, 8), np.bool_))

    def keep() -> NDArray[np.uint8]:
        reads.append("dense")
        return packed

    weight = stored(random_weight(np.random.default_rng(0), 4, 8), True)
    tensor = PieceTensor(weight, Piece("dense", ((0, 4),), ((0, 8),)), keep, "p")
    assert reads == []
    tensor.tobytes()
    tensor.tofile(io.BytesIO())
    assert len(reads) == 2


@pytest.mark.parametrize("dtype", list(FLOATS))
def test_stacked_pieces_lie_side_by_side(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of other widths and layouts, in strips of a few rows."""
    monkeypatch.setattr(stored_weight, "_STRIP_BYTES", 256)
    rng = np.random.default_rng(0)
    weights = [random_weight(rng, n, 48, dtype) for n in (8, 20, 3)]
    keeps = [rng.random(weight.shape) < 0.5 for weight in weights]
    spans: tuple[Span, ...] = ((0, 16), (24, 48))
    rows: list[tuple[Span, ...]] = [((0, 8),), ((2, 5), (9, 20)), ((1, 2),)]
    parts = [
        PieceTensor(
            stored(weight, index != 1),
            Piece("dense", rows[index], spans),
            partial(pack_keep, keep),
            "p",
        )
        for index, (weight, keep) in enumerate(zip(weights, keeps, strict=True))
    ]
    stacked = StackedTensor(parts, "s")
    columns = [i for span in spans for i in range(*span)]
    expected = np.concatenate(
        [
            np.where(keep, weight, weight.dtype.type(0))[
                np.ix_([i for span in row for i in range(*span)], columns)
            ].T
            for weight, keep, row in zip(weights, keeps, rows, strict=True)
        ],
        axis=1,
    )
    assert tuple(stacked.shape.numpy()) == expected.shape
    file = io.BytesIO()
    stacked.tofile(file)
    assert file.getvalue() == expected.tobytes()
    np.testing.assert_array_equal(
        np.asarray(stacked.numpy()).view(np.uint8),
        np.ascontiguousarray(expected).view(np.uint8),
    )


def test_pieces_of_other_heights_do_not_stack() -> None:
    weight = stored(random_weight(np.random.default_rng(0), 8, 16), True)
    parts = [
        PieceTensor(weight, Piece("dense", ((0, 8),), ((0, k),)), None, "p") for k in (8, 16)
    ]
    with pytest.raises(InternalError, match=r"stacks pieces over .* of K"):
        StackedTensor(parts, "s")
