"""Likelihoods of answers do not depend on batches, and are those of the tokens one by one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from patch_compile.errors import RecipeError
from patch_compile.evaluation.answers import Answers
from patch_compile.evaluation.scorers import Scorer

LETTERS = "_ abcdefghijklmnopqrstuvwxyz"
BOS, EOS, V = 28, 29, 30


@dataclass(frozen=True)
class Ask:
    args: tuple[Any, ...]


class Running:
    """A model whose logits depend on all tokens so far; it keeps the shapes it was given."""

    def __init__(self) -> None:
        self.table = np.random.default_rng(0).standard_normal((V, V))
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, tokens: NDArray[np.int64]) -> NDArray[Any]:
        self.shapes.append(tokens.shape)
        return np.cumsum(self.table[tokens], axis=1)


def _letters(text: str, special: bool) -> list[int]:
    return [LETTERS.index(letter) for letter in text]


def _with_ends(text: str, special: bool) -> list[int]:
    ids = _letters(text, special)
    return [BOS, *ids, EOS] if special else ids


def _expected(model: Running, context: Sequence[int], answer: Sequence[int]) -> Any:
    """log p of the answer token by token, each after all before it."""
    seen, total, greedy = list(context), 0.0, True
    for token in answer:
        logits = torch.from_numpy(model.table[seen].sum(axis=0))
        total += torch.log_softmax(logits, 0)[token].item()
        greedy = greedy and int(logits.argmax()) == token
        seen.append(token)
    # Float64 sums in another order.
    return pytest.approx((total, greedy), rel=1e-9)


REQUESTS = [Ask(("what is this", " a dog")), Ask(("x", " y")), Ask(("cats", " purr softly"))]


@pytest.mark.parametrize(("encode", "opening"), [(_letters, []), (_with_ends, [BOS])])
def test_likelihoods_are_those_of_the_tokens_one_by_one(encode: Any, opening: Any) -> None:
    model = Running()
    found = Answers(Scorer(model, encode)).loglikelihood(REQUESTS)
    for request, answer in zip(REQUESTS, found, strict=True):
        context, continuation = (_letters(text, False) for text in request.args)
        assert answer == _expected(model, [*opening, *context], continuation)
    # One batch, padded to the longest.
    assert model.shapes == [(3, len(opening) + 18)]


def test_the_greedy_answer_is_known() -> None:
    model = Running()
    best = int(model.table[LETTERS.index("c")].argmax())
    answers = Answers(Scorer(model, _letters))
    pairs = [Ask(("c", LETTERS[letter])) for letter in range(len(LETTERS))]
    greedy = [known for _, known in answers.loglikelihood(pairs)]
    assert greedy == [letter == best for letter in range(len(LETTERS))]
    assert any(greedy)


def test_spaces_at_the_end_of_a_context_belong_to_the_answer() -> None:
    answers = Answers(Scorer(Running(), _letters))
    one, other = answers.loglikelihood([Ask(("ab ", "cd")), Ask(("ab", " cd"))])
    assert one == other


def test_an_answer_that_melts_into_its_context_keeps_one_token() -> None:
    def pairs(text: str, special: bool) -> list[int]:
        return [LETTERS.index(text[i]) for i in range(0, len(text), 2)]

    model = Running()
    (found,) = Answers(Scorer(model, pairs)).loglikelihood([Ask(("abc", "d"))])
    assert found == _expected(model, _letters("a", False), _letters("c", False))


def test_an_answer_that_melts_into_all_of_its_context_needs_an_opening_token() -> None:
    def melted(text: str, special: bool) -> list[int]:
        return [3] if text else []

    with pytest.raises(RecipeError, match=r"'b' without a token before it"):
        Answers(Scorer(Running(), melted)).loglikelihood([Ask(("a", "b"))])


def test_batches_are_bounded_and_the_longest_comes_first() -> None:
    model = Running()
    lengths = np.random.default_rng(1).integers(2, 400, 60)
    asked = [Ask(("a" * (length - 1), "b")) for length in lengths]
    states: list[tuple[int, int, str]] = []
    answers = Answers(Scorer(model, _letters), lambda *state: states.append(state))
    found = answers.loglikelihood(asked)
    assert all(rows * tokens <= 1024 for rows, tokens in model.shapes)
    widths = [tokens for _, tokens in model.shapes]
    assert widths == sorted(widths, reverse=True)
    assert len(model.shapes) < 30
    assert states[-1] == (60, 60, "answers")
    alone = [answers.loglikelihood([request])[0] for request in asked]
    # The same float64 sums, whatever stands beside them.
    assert found == alone


def test_a_request_longer_than_a_batch_goes_alone() -> None:
    model = Running()
    Answers(Scorer(model, _letters)).loglikelihood([Ask(("a" * 1500, "b")), Ask(("a", "b"))])
    assert model.shapes == [(1, 1501), (1, 2)]


def test_an_empty_context_needs_an_opening_token() -> None:
    model = Running()
    (found,) = Answers(Scorer(model, _with_ends)).loglikelihood([Ask(("", "ab"))])
    assert found == _expected(model, [BOS], _letters("ab", False))
    with pytest.raises(RecipeError, match=r"'ab' without a token before it"):
        Answers(Scorer(model, _letters)).loglikelihood([Ask(("", "ab"))])


def test_an_unknown_token_with_the_number_of_bos_is_no_opening_lost() -> None:
    def unknown(text: str, special: bool) -> list[int]:
        return [0, *(0 for _ in text)] if special else [0 for _ in text]

    model = Running()
    (found,) = Answers(Scorer(model, unknown)).loglikelihood([Ask(("x", "y"))])
    assert found == _expected(model, [0, 0], [0])


@pytest.mark.parametrize("method", ["loglikelihood_rolling", "generate_until"])
def test_what_is_no_choice_is_refused(method: str) -> None:
    answers = Answers(Scorer(Running(), _letters))
    with pytest.raises(RecipeError, match=r"\(2 requests\); expected multiple-choice tasks"):
        getattr(answers, method)([Ask(("a",)), Ask(("b",))])
