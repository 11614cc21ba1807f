"""Plans are plain data that survive JSON."""

import json
from typing import get_args

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from patch_compile.tiles.plan import (
    LOWERINGS,
    GroupLowering,
    GroupPlan,
    Part,
    Piece,
    Plan,
    Span,
    WeightPlan,
    block_size,
    indices,
    length,
)


@st.composite
def spans(draw: st.DrawFn) -> tuple[Span, ...]:
    edges = sorted(draw(st.sets(st.integers(0, 200), min_size=2, max_size=10)))
    pairs = zip(edges[::2], edges[1::2], strict=False)
    return tuple((start, stop) for start, stop in pairs)


pieces = st.builds(
    Piece,
    st.sampled_from(["dense", "sparse24"]),
    spans(),
    spans(),
    st.sampled_from(get_args(Part)),
)
weight_plans = st.builds(
    WeightPlan,
    st.text(),
    st.lists(st.text(), max_size=3).map(tuple),
    st.tuples(st.integers(1, 10**9), st.integers(1, 10**9)),
    st.sampled_from(LOWERINGS),
    st.lists(pieces, max_size=3).map(tuple),
    st.text(),
)
group_plans = st.builds(
    GroupPlan,
    st.sampled_from(get_args(GroupLowering)),
    st.lists(st.text(), max_size=3).map(tuple),
    st.none() | st.text(),
    st.booleans(),
    st.text(),
)


@given(st.lists(weight_plans, max_size=3).map(tuple), st.lists(group_plans).map(tuple))
def test_plan_reads_back_from_its_own_json(
    plans: tuple[WeightPlan, ...], groups: tuple[GroupPlan, ...]
) -> None:
    plan = Plan(plans, groups)
    assert Plan.from_json(plan.to_json()) == plan
    assert json.loads(plan.to_json())["version"] == 2


def test_plan_of_version_one_reads_as_one_without_groups() -> None:
    piece = {"role": "dense", "rows": [[0, 8]], "columns": [[0, 16]]}
    weight = {
        "weight": "w",
        "masks": ["m"],
        "shape": [8, 16],
        "lowering": "dense",
        "reason": "",
        "pieces": [piece],
    }
    plan = Plan.from_json(json.dumps({"version": 1, "weights": [weight]}))
    assert plan.groups == ()
    assert plan.weights[0].pieces == (Piece("dense", ((0, 8),), ((0, 16),)),)


@given(spans(), st.integers(1, 300))
def test_spans_know_their_indices_and_the_block_they_move_in(
    some: tuple[Span, ...], size: int
) -> None:
    listed = [index for start, stop in some for index in range(start, stop)]
    assert indices(some).tolist() == listed
    assert length(some) == len(listed)
    block = block_size(some, size)
    edges = [size, *(edge for span in some for edge in span)]
    assert all(edge % block == 0 for edge in edges)
    assert not any(
        all(edge % larger == 0 for edge in edges) for larger in range(block + 1, size + 1)
    )


def test_sparse_piece_counts_half_its_multiply_adds() -> None:
    dense = Piece("dense", ((0, 8), (12, 20)), ((0, 16),))
    sparse = Piece("sparse24", ((8, 12), (20, 24)), ((0, 16),))
    plan = WeightPlan("w", ("m",), (24, 16), "columns", (dense, sparse), "")
    assert (dense.macs, sparse.macs, sparse.shape) == (256, 128, (8, 16))
    assert plan.macs == 320.0


def test_indices_are_int64_as_gather_wants_them() -> None:
    assert indices([(0, 3)]).dtype == np.int64
