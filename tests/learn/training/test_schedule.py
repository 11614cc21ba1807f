import math

import pytest

from patch_compile.learn.training.schedule import Anneal, Annealed, learning_rate


def test_both_ends_are_met_exactly() -> None:
    anneal = Anneal(temperature=(4.0, 0.05), scale=(25.0, 350.0))
    assert anneal.at(0, 200) == Annealed(4.0, 25.0)
    last = anneal.at(199, 200)
    assert (last.temperature, last.scale) == (pytest.approx(0.05), 350.0)


def test_the_middle_is_the_mean() -> None:
    middle = Anneal(temperature=(2.0, 1.0), scale=(0.0, 10.0)).at(5, 11)
    assert (middle.temperature, middle.scale) == (1.5, 5.0)


def test_a_run_of_one_step_stands_at_the_start() -> None:
    assert Anneal((2.0, 1.0), (3.0, 4.0)).at(0, 1) == Annealed(2.0, 3.0)


def test_the_rate_warms_up_and_follows_a_cosine_to_nothing() -> None:
    rates = [learning_rate(0.1, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.02)
    assert max(rates) == pytest.approx(0.1, rel=0.01)
    assert rates[50] == pytest.approx(0.05)
    assert rates[99] == pytest.approx(0.1 * 0.5 * (1 + math.cos(math.pi * 0.99)))
    assert rates[10:] == sorted(rates[10:], reverse=True)
