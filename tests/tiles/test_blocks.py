"""A cut of an inner axis cuts every weight around it at the same features."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patch_compile.tiles.blocks import (
    Heads,
    branch_pieces,
    row_pieces,
    shared_cut,
    sunk_pieces,
)
from patch_compile.tiles.cost import MultiplyAdds
from patch_compile.tiles.plan import Piece, indices
from patch_compile.tiles.weight_mask import WeightMask
from tests.support import random_mask, random_weight

INNER, HIDDEN = 32, 16

row_tiles = st.sampled_from(["band:4", "band:3", "band:8", "8x8", "weight"])
column_tiles = st.sampled_from(["column:4", "column:12", "8x8", "weight"])
seeds = st.integers(0, 2**32 - 1)


def mask(seed: int, shape: tuple[int, int], tiles: str, density: float = 0.2) -> WeightMask:
    rng = np.random.default_rng(seed)
    return random_mask(
        rng, "m", random_weight(rng, *shape), tiles, density, with_digests=False
    )


@given(seeds, st.lists(row_tiles, min_size=1, max_size=3), st.none() | column_tiles)
def test_cut_is_24_on_one_side_and_parts_no_group(
    seed: int, rows: list[str], columns: str | None
) -> None:
    makers = [mask(seed + i, (INNER, HIDDEN), tiles) for i, tiles in enumerate(rows)]
    last = None if columns is None else mask(seed + 9, (HIDDEN, INNER), columns)
    held = np.zeros(INNER, np.bool_)
    for maker in makers:
        held |= maker.grid.expand(maker.dense).any(axis=1)
    if last is not None:
        held |= last.grid.expand(last.dense).any(axis=0)
    wanted = [any(held[4 * (i // 4) : 4 * (i // 4) + 4]) for i in range(INNER)]
    cut = shared_cut(makers, last)
    if cut is None:
        assert all(wanted) or not any(wanted)
        return
    assert indices(cut.dense).tolist() == [i for i in range(INNER) if wanted[i]]
    assert indices(cut.sparse).tolist() == [i for i in range(INNER) if not wanted[i]]


def test_pieces_are_the_two_sides_of_the_cut() -> None:
    dense = np.array([True, False, False, True])
    rng = np.random.default_rng(0)
    weight = random_weight(rng, INNER, HIDDEN)
    cut = shared_cut([random_mask(rng, "g", weight, "band:8", dense=dense[:, None])], None)
    assert cut is not None
    ends, middle = ((0, 8), (24, 32)), ((8, 24),)
    assert row_pieces(cut, (INNER, HIDDEN)) == (
        Piece("dense", ends, ((0, HIDDEN),)),
        Piece("sparse24", middle, ((0, HIDDEN),)),
    )
    assert branch_pieces(cut, (12, INNER)) == (
        Piece("dense", ((0, 12),), ends),
        Piece("sparse24", ((0, 12),), middle),
    )


@pytest.mark.parametrize(
    ("tiles", "roles"), [("weight", ["sparse24"]), ("band:8", ["dense", "sparse24"])]
)
def test_sunk_weight_takes_the_order_of_the_joined_halves(
    tiles: str, roles: list[str]
) -> None:
    dense = np.array([True, False, True, False])
    rng = np.random.default_rng(0)
    weight = random_weight(rng, INNER, HIDDEN)
    cut = shared_cut([random_mask(rng, "g", weight, "band:8", dense=dense[:, None])], None)
    assert cut is not None
    rows = np.array([[True], [False]]) if tiles == "band:8" else np.array([[False]])
    last = random_mask(rng, "d", random_weight(rng, 16, INNER), tiles, dense=rows)
    pieces = sunk_pieces(cut, last, MultiplyAdds())
    assert [piece.role for piece in pieces] == roles
    for piece in pieces:
        assert piece.columns == ((0, 8), (16, 24), (8, 16), (24, 32))


@given(
    seeds,
    st.integers(2, 5),
    st.integers(1, 3),
    st.sampled_from([2, 4, 8]),
    st.lists(row_tiles, min_size=3, max_size=3),
    column_tiles,
    st.booleans(),
)
def test_cut_of_heads_parts_no_group_of_heads_and_none_of_four(
    seed: int,
    groups: int,
    share: int,
    head: int,
    rows: list[str],
    columns: str,
    fused: bool,
) -> None:
    kept, own = groups * head, groups * share * head
    if own % 4 or columns == "column:12" or "band:3" in rows:
        return
    shapes = [(3 * own, HIDDEN)] if fused else [(own, HIDDEN), (kept, HIDDEN), (kept, HIDDEN)]
    makers = [mask(seed + i, s, t) for i, (s, t) in enumerate(zip(shapes, rows, strict=False))]
    last = mask(seed + 9, (HIDDEN, own), columns)
    stacks = (3,) if fused else (1, 1, 1)
    cut = shared_cut(makers, last, Heads(groups, share * head, stacks, 1))
    held = [last.grid.expand(last.dense).any(axis=0)]
    for maker, several in zip(makers, stacks, strict=True):
        held += np.split(maker.grid.expand(maker.dense).any(axis=1), several)
    dense = {g for each in held for g in range(groups) if each.reshape(groups, -1)[g].any()}
    if cut is None:
        # Heads of 2 go in pairs: one that is dense may keep all the others.
        assert share * head % 4 or len(dense) in (0, groups)
        return
    sparse = branch_pieces(cut, last.shape)[1].columns
    assert all(edge % 4 == 0 for span in sparse for edge in span)
    for maker, several in zip(makers, stacks, strict=True):
        pieces = row_pieces(cut, maker.shape, several)
        rows_of = [indices(piece.rows) for piece in pieces]
        assert sorted(np.concatenate(rows_of)) == list(range(maker.shape[0]))
        size = maker.shape[0] // (several * groups)
        chosen = {int(row) // size % groups for row in rows_of[1]}
        assert not chosen & dense
        assert chosen == {int(column) // (share * head) for column in indices(sparse)}
        assert len(rows_of[1]) == several * size * len(chosen)
