"""Which channels become neighbours, against the definition written down in numpy."""

from itertools import permutations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from patch_compile.learn import channel_order
from patch_compile.learn.channel_order import (
    exchange_channels,
    lost_of_groups,
    lost_of_rows,
)

Order = NDArray[np.int64]


def _cost(rows: int, channels: int, seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((rows, channels)) ** 2).astype(np.float32)


def _lost(cost: NDArray[np.float32], order: Order) -> float:
    """What 2:4 loses: of every four in the order, the two cheapest of each row."""
    four = cost[:, order].astype(np.float64).reshape(len(cost), -1, 4)
    return float(np.sort(four, axis=2)[:, :, :2].sum())


def _exchanged(cost: NDArray[np.float32], rounds: int, seed: int = 0) -> Order:
    rng = np.random.default_rng(seed)
    order = np.arange(cost.shape[1])
    for _ in range(rounds):
        order = exchange_channels(torch.from_numpy(cost), order, rng)
    return order


def test_what_groups_and_rows_lose() -> None:
    cost = _cost(5, 24)
    four = np.sort(cost.reshape(5, 6, 4), axis=2)[:, :, :2]
    given = torch.from_numpy(cost)
    np.testing.assert_allclose(lost_of_groups(given), four.sum((0, 2)), rtol=1e-6)
    np.testing.assert_allclose(lost_of_rows(given), four.sum((1, 2)), rtol=1e-6)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("rows", "channels"), [(1, 4), (3, 8), (7, 40), (50, 172)])
def test_every_round_is_an_order_that_loses_no_more(
    rows: int, channels: int, seed: int
) -> None:
    cost, rng = _cost(rows, channels, seed), np.random.default_rng(seed)
    order = np.random.default_rng(99).permutation(channels)
    for _ in range(8):
        before = _lost(cost, order)
        order = exchange_channels(torch.from_numpy(cost), order, rng)
        assert sorted(order) == list(range(channels))
        assert _lost(cost, order) <= before * (1 + 1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_no_other_way_to_hand_out_what_was_given_is_better(seed: int) -> None:
    cost = _cost(9, 16, seed)
    order = _exchanged(cost, 1, seed)
    best = min(
        _lost(cost, np.concatenate([groups[:, :1][list(way)], groups[:, 1:]], 1).ravel())
        for groups in [order.reshape(-1, 4)]
        for way in permutations(range(4))
    )
    assert _lost(cost, order) == pytest.approx(best, rel=1e-6)
    assert best < _lost(cost, np.arange(16)), "the start was best already"


def test_heavy_channels_are_dealt_out_two_to_a_group() -> None:
    cost = _cost(20, 64) * np.where(np.arange(64) < 32, 1000, 1).astype(np.float32)
    light = float(cost[:, 32:].astype(np.float64).sum())
    assert _lost(cost, np.arange(64)) > 10 * light
    # Light channels alone are lost, each with certainty.
    assert _lost(cost, _exchanged(cost, 30)) <= light


def test_groups_of_a_part_exchange_and_parts_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    cost = _cost(30, 96)
    whole = _lost(cost, _exchanged(cost, 40))
    monkeypatch.setattr(channel_order, "_PARTNERS", 5)
    monkeypatch.setattr(channel_order, "_SLICE", 7)
    parted = _lost(cost, _exchanged(cost, 120))
    assert parted < _lost(cost, np.arange(96)) * 0.95
    assert parted == pytest.approx(whole, rel=0.03)


def test_same_seed_same_order() -> None:
    cost = _cost(6, 32)
    assert np.array_equal(_exchanged(cost, 5, seed=1), _exchanged(cost, 5, seed=1))
    assert not np.array_equal(_exchanged(cost, 5, seed=1), _exchanged(cost, 5, seed=2))
