"""Bills list what a form does: the graph's own operations, and no more."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from patch_compile.tiles.cost import MultiplyAdds
from patch_compile.tiles.operations import (
    Operations,
    in_order,
    of_group,
    of_pieces,
    shared_order,
    stacked,
)
from patch_compile.tiles.plan import GroupPlan, Piece, Role, Span, WeightPlan, indices

K = 16
ALL = ((0, K),)


def plan(name: str, *bands: str) -> WeightPlan:
    """A weight in bands of 8 rows, `d` or `s`, cut along N."""
    letters = "".join(bands)
    found = []
    roles: tuple[Role, ...] = ("dense", "sparse24")
    for role in roles:
        edges = [(8 * i, 8 * i + 8) for i, c in enumerate(letters) if c == role[0]]
        spans: list[Span] = []
        for start, stop in edges:
            start = spans.pop()[0] if spans and spans[-1][1] == start else start
            spans.append((start, stop))
        if spans:
            found.append(Piece(role, tuple(spans), ALL))
    form = "columns" if len(found) > 1 else "whole"
    return WeightPlan(name, (name,), (8 * len(letters), K), form, tuple(found), "")  # type: ignore[arg-type]


class Counting(MultiplyAdds):
    """1 a product, 100 a feature moved, 10,000 a feature added."""

    def product(self, n: int, k: int, *, sparse24: bool) -> float:
        return 1.0 + 0 * (n + k + sparse24)

    def moved(self, features: int) -> float:
        return 100.0 * features

    def added(self, features: int) -> float:
        return 10_000.0 * features


def test_columns_out_of_order_move_twice() -> None:
    whole = plan("w", "dsd")
    bill = of_pieces(whole.shape, whole.pieces)
    assert bill == Operations(((16, K, "dense"), (8, K, "sparse24")), (24, 24), ())
    assert bill.launches == 4
    assert bill.price(Counting()) == 2 + 100 * 48


def test_columns_in_order_move_once() -> None:
    whole = plan("w", "sd")
    assert of_pieces(whole.shape, whole.pieces).moved == (16,)


def test_reduction_takes_two_parts_of_x_and_adds() -> None:
    rows: tuple[Span, ...] = ((0, 24),)
    pieces = (Piece("dense", rows, ((0, 4),)), Piece("sparse24", rows, ((4, K),)))
    assert of_pieces((24, K), pieces) == Operations(
        ((24, 4, "dense"), (24, 12, "sparse24")), (4, 12), (24,)
    )


def test_residual_takes_one_part_of_x() -> None:
    rows: tuple[Span, ...] = ((0, 24),)
    pieces = (
        Piece("sparse24", rows, ALL, "first"),
        Piece("sparse24", rows, ((4, 8),), "rest"),
    )
    assert of_pieces((24, K), pieces) == Operations(
        ((24, K, "sparse24"), (24, 4, "sparse24")), (4,), (24,)
    )


def test_cover_joins_a_band_and_a_sum() -> None:
    rest: tuple[Span, ...] = ((8, 24),)
    pieces = (
        Piece("dense", ((0, 8),), ALL),
        Piece("dense", rest, ((0, 4),)),
        Piece("sparse24", rest, ((4, K),)),
    )
    assert of_pieces((24, K), pieces) == Operations(
        ((8, K, "dense"), (16, 4, "dense"), (16, 12, "sparse24")), (4, 12, 24), (16,)
    )


def test_merge_of_cut_weights_orders_all_at_once() -> None:
    plans = [plan("q", "dsd"), plan("k", "sd")]
    group = GroupPlan("merge", ("q", "k"), None, True, "")
    assert shared_order(plans)
    assert of_group(group, plans) == Operations(
        ((24, K, "dense"), (16, K, "sparse24")), (40, 40, 40), ()
    )


def test_merge_of_one_cut_weight_joins_that_one() -> None:
    plans = [plan("q", "dsd"), plan("k", "d"), plan("v", "d")]
    group = GroupPlan("merge", ("q", "k", "v"), None, True, "")
    assert not shared_order(plans)
    assert of_group(group, plans) == Operations(
        ((32, K, "dense"), (8, K, "sparse24")), (32, 24, 24), ()
    )


def test_branches_add_once_and_split_where_merged() -> None:
    rows = [plan("g", "ds"), plan("u", "ds")]
    pieces = (Piece("dense", ((0, 5),), ((0, 8),)), Piece("sparse24", ((0, 5),), ((8, 16),)))
    last = WeightPlan("d", ("d",), (5, 16), "branches", pieces, "")
    apart = GroupPlan("branches", ("g", "u"), "d", False, "")
    merged = GroupPlan("branches", ("g", "u"), "d", True, "")
    summed: tuple[tuple[int, int, Role], ...] = ((5, 8, "dense"), (5, 8, "sparse24"))
    both: tuple[tuple[int, int, Role], ...] = ((8, K, "dense"), (8, K, "sparse24"))
    assert of_group(apart, [*rows, last]) == Operations(
        (*both, *both, *summed), (), (5,), again=1
    )
    assert of_group(merged, [*rows, last]) == Operations(
        ((16, K, "dense"), (16, K, "sparse24"), *summed), (16, 16), (5,), again=1
    )


def test_branches_of_an_attention_launch_it_and_its_rotations_again() -> None:
    rows = [plan("q", "ds"), plan("k", "ds"), plan("v", "ds")]
    pieces = (Piece("dense", ((0, 5),), ((0, 8),)), Piece("sparse24", ((0, 5),), ((8, 16),)))
    last = WeightPlan("o", ("o",), (5, 16), "branches", pieces, "")
    group = GroupPlan("branches", ("q", "k", "v"), "o", True, "", again=3)
    bill = of_group(group, [*rows, last])
    assert bill.again == 3
    assert bill.moved == (24, 24)
    assert bill.added == (5,)
    assert GroupPlan.from_json(group.to_json()) == group


def test_what_runs_again_costs_a_launch_and_moves_nothing() -> None:
    class Launches(Counting):
        def moved(self, features: int) -> float:
            return 7.0 + 100.0 * features

    twice = Operations(again=1) + Operations(again=1)
    assert twice.again == 2
    assert twice.price(Launches()) == 14.0
    assert twice.price(MultiplyAdds()) == 0.0


def test_sunk_order_moves_the_inner_axis_once() -> None:
    rows = [plan("g", "ds")]
    pieces = (Piece("sparse24", ((0, 5),), ((0, 8), (8, 16))),)
    last = WeightPlan("d", ("d",), (5, 16), "sink-order", pieces, "")
    group = GroupPlan("sink-order", ("g",), "d", False, "")
    assert of_group(group, [*rows, last]) == Operations(
        ((8, K, "dense"), (8, K, "sparse24"), (5, 16, "sparse24")), (16,), (), again=1
    )


letters = st.text("ds", min_size=1, max_size=6)


@given(st.lists(letters, min_size=1, max_size=4))
def test_stacked_pieces_are_disjoint_and_hold_every_row(bands: list[str]) -> None:
    plans = [plan(f"w{i}", each) for i, each in enumerate(bands)]
    joined = "".join(bands)
    rows = {piece.role: indices(piece.rows).tolist() for piece in stacked(plans)}
    for role in ("dense", "sparse24"):
        wanted = [i for i in range(8 * len(joined)) if joined[i // 8] == role[0]]
        assert rows.get(role, []) == wanted


@given(letters)
def test_order_is_kept_where_the_joined_rows_rise(bands: str) -> None:
    order = np.concatenate(
        [
            indices(piece.rows)
            for piece in sorted(plan("w", bands).pieces, key=lambda p: p.rows[0])
        ]
    )
    assert in_order(plan("w", bands).pieces) == (sorted(order) == order.tolist())
