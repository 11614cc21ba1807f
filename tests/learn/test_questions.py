import torch

from patch_compile.learn.questions import UNASKED, questions
from tests.learn.tiny import random_ids


def test_a_causal_model_is_asked_for_the_next_tokens() -> None:
    ids = random_ids((2, 8))
    read, answers = questions(ids, None)
    assert torch.equal(read, ids)
    assert torch.equal(answers[:, :-1], ids[:, 1:])
    assert (answers[:, -1] == UNASKED).all()


def test_a_masked_model_is_asked_for_hidden_tokens_and_no_others() -> None:
    ids = random_ids((4, 40)) + 5
    read, answers = questions(ids, 1)
    hidden = answers != UNASKED
    assert torch.equal(read == 1, hidden)
    assert torch.equal(answers[hidden], ids[hidden])
    assert torch.equal(read[~hidden], ids[~hidden])
    # 15 % of 40.
    assert hidden.sum(1).tolist() == [6, 6, 6, 6]


def test_a_window_hides_the_same_whenever_and_wherever_it_is_asked_about() -> None:
    ids = random_ids((3, 20))
    read, _ = questions(ids, 1)
    alone, _ = questions(ids[1:2], 1)
    assert torch.equal(alone[0], read[1])
    assert not torch.equal(read[0] == 1, read[1] == 1)


def test_a_short_window_hides_one_token() -> None:
    _, answers = questions(random_ids((1, 2)), 1)
    assert int((answers != UNASKED).sum()) == 1
