import json
import sys
import tracemalloc
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from patch_compile.errors import RecipeError, RuntimeUnavailable
from patch_compile.learn import documents
from patch_compile.learn.documents import is_dataset, read_file, stream
from patch_compile.learn.text import split_windows, windows
from tests.learn.tiny import random_ids, tiny_tokenizer


def _lines(path: Path, count: int) -> Path:
    text = "\n".join(f"w{i % 100} w{i % 7}" for i in range(count))
    path.write_text(text, "utf-8")
    return path


@pytest.mark.parametrize("piece", [1, 30, 10**6])
def test_a_text_in_pieces_has_the_tokens_of_the_whole(
    piece: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "PIECE", piece)
    # Or a text as short would be cut anywhere.
    monkeypatch.setattr(documents, "_PATIENCE", 100)
    path = tmp_path / "text.txt"
    path.write_bytes(b"one\n\ntwo\n  three\n\n\nfour\r\nfive")
    pieces = list(read_file(path))
    assert "".join(pieces) == "one\n\ntwo\n  three\n\n\nfour\nfive"
    for before, after in pairwise(pieces):
        assert before.endswith("\n")
        assert not before.endswith("\n\n")
        assert not after[0].isspace()
    assert len(pieces) == {1: 2, 30: 1, 10**6: 1}[piece]


def test_only_a_piece_of_a_text_is_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "PIECE", 10_000)
    path = _lines(tmp_path / "text.txt", 200_000)
    tracemalloc.start()
    total = sum(len(piece) for piece in read_file(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == path.stat().st_size
    # Lines of a piece, joined and decoded, and the file's buffer.
    assert peak < total / 5


@pytest.mark.parametrize("end", [" ", "\n ", "\n\n"])
def test_texts_without_a_good_place_are_cut_too(
    end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line, raw WikiText, and a paragraph a line."""
    monkeypatch.setattr(documents, "PIECE", 1_000)
    path = tmp_path / "text.txt"
    text = end.join(f"w{i} w{i % 7}" for i in range(5_000))
    path.write_text(text, "utf-8")
    pieces = list(read_file(path))
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= 5_100
    assert all(piece.strip() for piece in pieces)


def test_the_byte_that_is_not_utf_8_is_counted_from_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "PIECE", 4)
    path = tmp_path / "text.txt"
    path.write_bytes(b"one\ntwo\nthr\xffee")
    with pytest.raises(RecipeError, match="not UTF-8 at byte 11"):
        list(read_file(path))


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    """A data set in a folder: what the library streams from the hub, it streams from here."""
    pytest.importorskip("datasets")
    for split, seed in (("train", 0), ("test", 1)):
        words = random_ids((40, 10), seed).tolist()
        rows = [{"text": " ".join(f"w{i}" for i in row), "id": 1} for row in words]
        path = tmp_path / "set" / f"{split}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return f"hf:{tmp_path / 'set'}"


def _rows(picked: Any) -> set[tuple[int, ...]]:
    return {tuple(row) for row in picked.tolist()}


def test_a_data_set_is_a_text(dataset: str) -> None:
    picked = windows([dataset], tiny_tokenizer(), 40, 10, seed=3)
    assert _rows(picked) == _rows(random_ids((40, 10)))
    again = windows([dataset], tiny_tokenizer(), 40, 10, seed=3)
    assert np.array_equal(picked, again)
    other = windows([f"{dataset}::test"], tiny_tokenizer(), 40, 10, seed=3)
    assert _rows(other) == _rows(random_ids((40, 10), 1))
    split = split_windows(
        [dataset], tiny_tokenizer(), needed=30, window=10, holdout=10, seed=0
    )
    assert _rows(split.train) | _rows(split.held_out) == _rows(random_ids((40, 10)))


def test_no_more_of_a_data_set_is_read_than_is_needed(
    dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def noted(source: str, row: dict[str, Any]) -> str:
        read.append(source)
        return str(row["text"])

    monkeypatch.setattr(documents, "_text_of", noted)
    monkeypatch.setattr("patch_compile.learn.text.PIECE", 1)
    windows([dataset], tiny_tokenizer(), 4, 10, seed=0)
    assert len(read) == 4


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hf:", "names no data set"),
        ("hf:a:b:c:d", "names no data set"),
        ("hf:/no/such/folder", "cannot be had"),
        ("{}::validation", "cannot be had"),
        ("{}:other", "cannot be had"),
    ],
)
def test_a_data_set_that_cannot_be_had_is_one_line(
    source: str, message: str, dataset: str
) -> None:
    source = source.format(dataset)
    with pytest.raises(RecipeError, match=message) as caught:
        windows([source], tiny_tokenizer(), 1, 2, seed=0)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"text '{source}' | ")


def test_a_data_set_without_texts_says_what_it_has(dataset: str, tmp_path: Path) -> None:
    (tmp_path / "set" / "train.jsonl").write_text('{"body": "w1", "id": 2}\n', "utf-8")
    with pytest.raises(RecipeError, match=r"has rows of \['body', 'id'\]"):
        list(stream(dataset, 0))


def test_without_the_library_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(RuntimeUnavailable, match=r"pip install 'datasets>=[0-9.]+'$"):
        list(stream("hf:some/set", 0))


def test_only_what_says_so_is_a_data_set(tmp_path: Path) -> None:
    assert is_dataset("hf:allenai/c4:en")
    assert not is_dataset("allenai/c4")
    assert not is_dataset(tmp_path / "hf:set")
