import json
from pathlib import Path

import numpy as np
import pytest

from patch_compile.errors import RecipeError
from patch_compile.learn.text import split_windows, windows
from tests.learn.tiny import random_ids, tiny_tokenizer, write_text


def test_windows_are_distinct_pieces_of_the_text_in_order(tmp_path: Path) -> None:
    path = write_text(tmp_path / "text.txt", 103)
    tokens = random_ids((103,)).numpy()
    all_windows = tokens[:100].reshape(10, 10)
    picked = windows([path], tiny_tokenizer(), 6, 10, seed=1)
    places = [int(np.flatnonzero((all_windows == window).all(axis=1))[0]) for window in picked]
    assert picked.dtype == np.int64
    assert len(places) == 6
    assert places == sorted(set(places))


def test_all_windows_are_the_whole_text_without_a_first_mark(tmp_path: Path) -> None:
    path = write_text(tmp_path / "text.txt", 25)
    picked = windows([path], tiny_tokenizer(), 3, 8, seed=0)
    assert picked.ravel().tolist() == random_ids((25,)).tolist()[:24]


def test_seed_decides_the_choice(tmp_path: Path) -> None:
    path = write_text(tmp_path / "text.txt", 400)
    first, same, other = (windows([path], tiny_tokenizer(), 5, 4, seed) for seed in (0, 0, 1))
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)


def test_documents_of_a_jsonl_follow_each_other(tmp_path: Path) -> None:
    lines = [json.dumps({"text": text, "id": 1}) for text in ("w1 w2", " ", "w3 w4 w5")]
    path = tmp_path / "text.jsonl"
    path.write_text("\n".join([*lines, "", ""]), "utf-8")
    assert windows([path], tiny_tokenizer(), 1, 5, seed=0).tolist() == [[1, 2, 3, 4, 5]]


def test_short_text_says_what_there_is_and_what_is_needed(tmp_path: Path) -> None:
    path = write_text(tmp_path / "text.txt", 39)
    with pytest.raises(RecipeError, match="has 39 tokens; 40 are needed for 4 windows of 10"):
        windows([path], tiny_tokenizer(), 4, 10, seed=0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "is empty"),
        ("a.txt", b" \n\t", "is empty"),
        ("a.txt", b"w1 \xff", "not UTF-8 at byte 3"),
        ("a.jsonl", b'{"text": "w1"}\n{"text": 1}', "line 2 is not a JSON object"),
        ("a.jsonl", b'{"body": "w1"}', "line 1 is not a JSON object"),
        ("a.jsonl", b"[1]", "line 1 is not a JSON object"),
        ("a.jsonl", b"w1", "line 1 is not a JSON object"),
    ],
)
def test_unusable_text_is_one_line_that_names_it(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=message) as caught:
        windows([path], tiny_tokenizer(), 1, 2, seed=0)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_missing_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none\.txt' \| cannot be read"):
        windows([tmp_path / "none.txt"], tiny_tokenizer(), 1, 2, seed=0)


def test_several_texts_are_cut_apart_and_pooled(tmp_path: Path) -> None:
    first = write_text(tmp_path / "first.txt", 25)
    second = tmp_path / "second.txt"
    second.write_text("w9 " * 9, "utf-8")
    pooled = windows([first, second], tiny_tokenizer(), 4, 8, seed=0)
    assert pooled[:3].ravel().tolist() == random_ids((25,)).tolist()[:24]
    assert pooled[3].tolist() == [9] * 8


def test_no_window_is_both_learned_from_and_held_out(tmp_path: Path) -> None:
    path = write_text(tmp_path / "text.txt", 400)
    split = split_windows([path], tiny_tokenizer(), needed=20, window=10, holdout=7, seed=1)
    both = np.concatenate([split.train, split.held_out])
    assert (split.train.shape, split.held_out.shape) == ((20, 10), (7, 10))
    assert len(np.unique(both, axis=0)) == 27


def test_a_longer_run_starts_like_a_shorter_one(tmp_path: Path) -> None:
    path = write_text(tmp_path / "text.txt", 400)
    options = {"window": 10, "holdout": 3, "seed": 2}
    short = split_windows([path], tiny_tokenizer(), needed=5, **options)
    long = split_windows([path], tiny_tokenizer(), needed=30, **options)
    assert np.array_equal(long.train[:5], short.train)
    assert np.array_equal(long.held_out, short.held_out)
    other = split_windows([path], tiny_tokenizer(), needed=5, **{**options, "seed": 3})
    assert not np.array_equal(other.train, short.train)


def test_a_text_too_short_to_learn_from_says_what_is_needed(tmp_path: Path) -> None:
    path = write_text(tmp_path / "text.txt", 95)
    with pytest.raises(
        RecipeError, match="has 95 tokens; 100 are needed for 10 windows of 10"
    ):
        split_windows([path], tiny_tokenizer(), needed=8, window=10, holdout=2, seed=0)
