"""Perplexity is exp of the mean next-token loss; windows are the first tokens of a text."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from patch_compile.errors import ModelError, RecipeError
from patch_compile.runtimes.onnxruntime import open_session
from patch_compile.runtimes.perplexity import (
    cut_windows,
    open_tokenizer,
    perplexity,
    predictions,
    session_scorer,
    strided_perplexity,
    text_tokens,
    text_windows,
)
from tests.runtimes.fakes import FakeArgument, FakeSession

VOCABULARY, HIDDEN = 37, 8
WORDS = ("a", "b", "c", "d")


def _bigram_model(
    path: Path, embedding: NDArray[Any], head: NDArray[Any], *, decoder: bool = False
) -> None:
    """Saves logits = E[input_ids] H, with E (V, hidden) and H (hidden, V)."""
    names = ["input_ids", "attention_mask", "position_ids"] if decoder else ["input_ids"]
    kind = helper.np_dtype_to_tensor_dtype(embedding.dtype)
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["E", "input_ids"], ["x"]),
            helper.make_node("MatMul", ["x", "H"], ["logits"]),
        ],
        "bigram",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"])
            for name in names
        ],
        [helper.make_tensor_value_info("logits", kind, ["batch", "sequence", VOCABULARY])],
        [numpy_helper.from_array(embedding, "E"), numpy_helper.from_array(head, "H")],
    )
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), path)


@pytest.mark.parametrize("decoder", [False, True])
def test_random_model_agrees_with_torch(
    tmp_path: Path, rng: np.random.Generator, decoder: bool
) -> None:
    embedding = rng.standard_normal((VOCABULARY, HIDDEN)).astype(np.float32)
    head = rng.standard_normal((HIDDEN, VOCABULARY)).astype(np.float32)
    _bigram_model(tmp_path / "m.onnx", embedding, head, decoder=decoder)
    # More rows than are turned to float64 at a time.
    windows = rng.integers(0, VOCABULARY, (3, 150))
    found = perplexity(open_session(tmp_path / "m.onnx"), windows)
    ids = torch.from_numpy(windows)
    logits = torch.from_numpy(embedding)[ids[:, :-1]] @ torch.from_numpy(head)
    loss = torch.nn.functional.cross_entropy(
        logits.reshape(-1, VOCABULARY).double(), ids[:, 1:].reshape(-1)
    )
    # Only the float32 sums of 8 products differ.
    assert found == pytest.approx(math.exp(loss.item()), rel=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_uniform_model_has_the_size_of_its_vocabulary(
    tmp_path: Path, rng: np.random.Generator, dtype: str
) -> None:
    embedding = np.zeros((VOCABULARY, HIDDEN), dtype)
    _bigram_model(tmp_path / "m.onnx", embedding, embedding.T.copy())
    windows = rng.integers(0, VOCABULARY, (2, 9))
    found = perplexity(open_session(tmp_path / "m.onnx"), windows)
    assert found == pytest.approx(VOCABULARY, rel=1e-12)


def _fake(logits: NDArray[Any]) -> FakeSession:
    inputs = (FakeArgument("input_ids", ("batch", "sequence"), "tensor(int64)"),)
    return FakeSession(inputs, {"logits": logits})


def test_each_position_predicts_the_next_token() -> None:
    logits = np.full((1, 3, 4), -1000.0, np.float32)
    # Tokens 2, 0, 3: sure of 0 after the first and of 3 after the second.
    logits[0, 0, 0] = logits[0, 1, 3] = 1000.0
    assert perplexity(_fake(logits), np.array([[2, 0, 3]])) == 1.0
    # A model that is sure of the wrong token is as bad as can be.
    assert perplexity(_fake(logits), np.array([[2, 3, 0]])) == math.inf


def test_large_logits_do_not_overflow() -> None:
    logits = np.full((1, 3, 4), 30_000.0, np.float16)
    found = perplexity(_fake(logits), np.array([[2, 0, 3]]))
    assert found == pytest.approx(4.0, rel=1e-12)


def _running_model(rng: np.random.Generator) -> Any:
    """A model whose logits depend on all tokens so far: the running sum of their rows."""
    table = rng.standard_normal((VOCABULARY, VOCABULARY))

    def score(tokens: NDArray[np.int64]) -> NDArray[Any]:
        return np.cumsum(table[tokens], axis=1)

    return score


def _hugging_face(score: Any, ids: NDArray[np.int64], window: int, stride: int) -> float:
    """The loop of Hugging Face's guide: labels of tokens that counted before are -100."""
    losses, before = [], 0
    for begin in range(0, len(ids) - window + 1, stride):
        end = begin + window
        tokens = torch.from_numpy(ids[begin:end].copy())
        labels = tokens.clone()
        labels[: -(end - before)] = -100
        logits = torch.from_numpy(score(ids[None, begin:end])[0])
        losses.append(
            torch.nn.functional.cross_entropy(
                logits[:-1], labels[1:], ignore_index=-100, reduction="none"
            )[labels[1:] != -100]
        )
        before = end
    return math.exp(torch.cat(losses).mean().item())


@pytest.mark.parametrize("stride", [1, 3, 7, 8])
def test_strided_windows_agree_with_hugging_faces_loop(
    rng: np.random.Generator, stride: int
) -> None:
    score, ids = _running_model(rng), rng.integers(0, VOCABULARY, 30)
    found = strided_perplexity(score, cut_windows(ids, 8, stride), stride)
    # Both sum float64; only the order differs.
    assert found == pytest.approx(_hugging_face(score, ids, 8, stride), rel=1e-12)


def test_no_token_counts_twice(rng: np.random.Generator) -> None:
    seen: list[int] = []

    def score(tokens: NDArray[np.int64]) -> NDArray[Any]:
        seen.append(int(tokens[0, 0]))
        return np.zeros((*tokens.shape, 40))

    windows = cut_windows(np.arange(30), 8, 3)
    assert strided_perplexity(score, windows, 3) == pytest.approx(40.0, rel=1e-12)
    assert seen == [0, 3, 6, 9, 12, 15, 18, 21]
    # Tokens 1 to 28, each once; 29 fills no window.
    assert predictions(windows, 3) == 28
    assert predictions(cut_windows(np.arange(30), 8, 8), 8) == 3 * 7


def test_a_model_of_nans_has_no_perplexity() -> None:
    def score(tokens: NDArray[np.int64]) -> NDArray[Any]:
        return np.full((*tokens.shape, 4), np.nan)

    assert math.isnan(strided_perplexity(score, np.array([[1, 2, 3]]), 3))


def test_a_session_scores_a_batch(tmp_path: Path, rng: np.random.Generator) -> None:
    embedding = rng.standard_normal((VOCABULARY, HIDDEN)).astype(np.float32)
    _bigram_model(tmp_path / "m.onnx", embedding, embedding.T.copy(), decoder=True)
    tokens = rng.integers(0, VOCABULARY, (3, 5))
    logits = session_scorer(open_session(tmp_path / "m.onnx"))(tokens)
    # Float32 sums of 8 products.
    np.testing.assert_allclose(logits, embedding[tokens] @ embedding.T, atol=1e-5)


def test_progress_counts_windows() -> None:
    calls: list[tuple[int, int, str]] = []
    session = _fake(np.zeros((1, 3, 4), np.float32))
    windows = np.zeros((2, 3), np.int64)
    perplexity(session, windows, lambda *state: calls.append(state))
    assert calls == [(1, 2, "perplexity"), (2, 2, "perplexity")]


@pytest.mark.parametrize("shape", [(1, 1, 4), (3, 4), (1, 4, 3, 4)])
def test_outputs_that_are_no_logits_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=r"output 'logits' \| has shape"):
        perplexity(_fake(np.zeros(shape, np.float32)), np.array([[1, 2, 3]]))


def test_tokens_beyond_the_vocabulary_are_refused() -> None:
    session = _fake(np.zeros((1, 3, 4), np.float32))
    with pytest.raises(ModelError, match=r"cover 4 tokens, the text has token 4"):
        perplexity(session, np.array([[1, 2, 4]]))


@pytest.fixture
def tokenizer_file(tmp_path: Path) -> Path:
    """A tokenizer.json of one token a word, which asks for [bos] and cuts at 3 tokens."""
    tokenizer = Tokenizer(WordLevel({w: i for i, w in enumerate((*WORDS, "[bos]"))}, "a"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[bos] $A", special_tokens=[("[bos]", len(WORDS))]
    )
    tokenizer.enable_truncation(3)
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def _text(tmp_path: Path, content: str) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(content, encoding="utf-8")
    return path


def test_windows_are_the_first_tokens_without_bos(
    tmp_path: Path, tokenizer_file: Path
) -> None:
    text = _text(tmp_path, "d c b a d c b a b b")
    windows = text_windows(text, tokenizer_file, 7, 3)
    assert windows.dtype == np.int64
    np.testing.assert_array_equal(windows, [[3, 2, 1], [0, 3, 2]])


def test_all_tokens_of_a_text_are_taken_unless_told(
    tmp_path: Path, tokenizer_file: Path
) -> None:
    text, encode = _text(tmp_path, "d c b a"), open_tokenizer(tokenizer_file)
    np.testing.assert_array_equal(text_tokens(text, encode, None), [3, 2, 1, 0])
    np.testing.assert_array_equal(text_tokens(text, encode, 2), [3, 2])
    assert encode("a b", True) == [len(WORDS), 0, 1]


def test_windows_overlap_by_the_stride_and_drop_the_tail() -> None:
    windows = cut_windows(np.arange(9), 4, 2)
    np.testing.assert_array_equal(windows, [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7]])


def test_short_text_says_how_short(tmp_path: Path, tokenizer_file: Path) -> None:
    with pytest.raises(RecipeError, match=r"has 3 tokens, 6 were asked for"):
        text_windows(_text(tmp_path, "a b c"), tokenizer_file, 6, 3)


@pytest.mark.parametrize("window", [1, 7])
def test_windows_that_no_token_fills_are_refused(
    tmp_path: Path, tokenizer_file: Path, window: int
) -> None:
    with pytest.raises(RecipeError, match=r"window \| is .*expected 2 to 6"):
        text_windows(_text(tmp_path, "a b c a b c d"), tokenizer_file, 6, window)


def test_missing_and_binary_texts_are_refused(tmp_path: Path, tokenizer_file: Path) -> None:
    with pytest.raises(RecipeError, match=r"none\.txt' \| cannot be read"):
        text_windows(tmp_path / "none.txt", tokenizer_file, 6, 3)
    (tmp_path / "binary").write_bytes(b"ab\xff")
    with pytest.raises(RecipeError, match=r"binary' \| is not UTF-8 at byte 2"):
        text_windows(tmp_path / "binary", tokenizer_file, 6, 3)


@pytest.mark.parametrize("content", [None, "{", '{"model": 3}'])
def test_damaged_tokenizer_is_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ModelError, match=r"tokenizer .*tokenizer\.json' \| "):
        text_windows(_text(tmp_path, "a b c"), path, 3, 3)
