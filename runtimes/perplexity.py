"""Perplexity of a language model, whatever runs it.

W: windows. T: tokens in a window. B: batch. V: size of the vocabulary.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from patch_compile._require import require
from patch_compile.errors import ModelError, RecipeError
from patch_compile.runtimes.inputs import token_inputs
from patch_compile.runtimes.onnxruntime import Session, run_session

__all__ = [
    "Encode",
    "Score",
    "check_causal",
    "cut_windows",
    "load_tokenizer",
    "moved_by_later",
    "open_tokenizer",
    "perplexity",
    "predictions",
    "read_text",
    "session_length",
    "session_scorer",
    "strided_perplexity",
    "surprises",
    "text_tokens",
    "text_windows",
]

Progress = Callable[[int, int, str], None]
# From token ids, int64 (B, T), to logits, float (B, T, V).
Score = Callable[[NDArray[np.int64]], NDArray[Any]]
# From a text to its token ids; whether special tokens are wanted.
Encode = Callable[[str, bool], list[int]]

# Rows of logits turned to float64 at a time: 64 x 128,256 are 66 MB.
_ROWS = 64
# Tokens of a probe, where a model takes any number.
_PROBE = 4


def perplexity(
    session: Session, windows: NDArray[np.int64], progress: Progress | None = None
) -> float:
    """Returns the perplexity of an ONNX model on windows that do not overlap.

    Args:
        session: see `session_scorer`.
        windows: token ids, int64 (W, T), W >= 1, T >= 2.
        progress: called with (windows done, W, "perplexity").

    Raises:
        ModelError: see `session_scorer` and `surprises`.
    """
    return strided_perplexity(session_scorer(session), windows, windows.shape[1], progress)


def strided_perplexity(
    score: Score, windows: NDArray[np.int64], stride: int, progress: Progress | None = None
) -> float:
    """Returns exp of the mean negative log likelihood of each next token.

    Windows are run one at a time and do not see each other; no token is put before them.
    With stride T each gives T - 1 predictions: the convention of Wanda, SparseGPT and PATCH.
    With a smaller one, all windows but the first count their last `stride` predictions only,
    so that no token counts twice: the convention of Hugging Face's guide to perplexity.

    Args:
        score: the model.
        windows: token ids, int64 (W, T), W >= 1, T >= 2, each `stride` after the one before.
        stride: 1 to T.
        progress: called with (windows done, W, "perplexity").

    Raises:
        ModelError: see `surprises`, and whatever `score` raises.
    """
    total, counted = 0.0, windows.shape[1] - 1
    for done, window in enumerate(windows, start=1):
        logits = score(window[None])[0, :-1]
        total += float(surprises(logits[-counted:], window[1:][-counted:]).sum())
        counted = min(stride, windows.shape[1] - 1)
        if progress is not None:
            progress(done, len(windows), "perplexity")
    mean = total / predictions(windows, stride)
    # Beyond float64's range a model is as bad as can be, not an error; NaN stays NaN.
    return math.inf if mean >= math.log(np.finfo(np.float64).max) else math.exp(mean)


def predictions(windows: NDArray[np.int64], stride: int) -> int:
    """Returns how many predictions `strided_perplexity` is the mean of."""
    later, window = len(windows) - 1, len(windows[0])
    return window - 1 + later * min(stride, window - 1)


def session_scorer(session: Session) -> Score:
    """Returns an ONNX model as a function.

    Args:
        session: a model from `input_ids` to logits (B, T, V), named `logits` or its first
            output.

    The function raises ModelError if the model takes other inputs, cannot run, or gives other
    shapes.
    """

    def score(tokens: NDArray[np.int64]) -> NDArray[Any]:
        outputs = run_session(session, token_inputs(session, tokens))
        name = "logits" if "logits" in outputs else next(iter(outputs))
        logits = outputs[name]
        if logits.ndim != 3 or logits.shape[:2] != tokens.shape:
            batch, length = tokens.shape
            raise ModelError(
                f"output '{name}' | has shape {logits.shape}; expected logits of every "
                f"position, ({batch}, {length}, vocabulary); export the model without a cut "
                "to the last token"
            )
        return logits

    return score


def session_length(session: Session) -> int | None:
    """Returns the number of tokens that a model takes; None if it takes any."""
    shapes = {argument.name: argument.shape for argument in session.get_inputs()}
    size = shapes.get("input_ids", ())[1:2]
    return size[0] if size and isinstance(size[0], int) else None


def check_causal(model: str, score: Score, length: int | None = None) -> None:
    """Refuses encoders, whose logits at a position depend on the tokens after it.

    Args:
        model: its name, for the message.
        score: the model.
        length: tokens that it takes, if it takes no other number.

    Raises:
        ModelError: if the logits move with a later token, and whatever `score` raises.
    """
    apart = moved_by_later(score, length)
    if apart:
        raise ModelError(
            f"model '{model}' | is no causal language model: its outputs move by {apart:.3g} "
            "with a later token, as an encoder's do; expected a model that predicts the next "
            "token, for which alone perplexity, likelihoods and generated text are defined"
        )


def moved_by_later(score: Score, length: int | None = None) -> float:
    """Returns by how much a later token moves the logits; 0 of a causal model.

    Args:
        score: the model.
        length: tokens that it takes, if it takes no other number.

    Raises:
        ModelError: whatever `score` raises.
    """
    # Ids that every vocabulary has; the two texts differ in their last token.
    probe = np.resize([1, 2, 3], (1, length or _PROBE)).astype(np.int64)
    other = probe.copy()
    other[0, -1] = probe[0, -1] % 3 + 1
    first, second = (score(tokens)[0, :-1] for tokens in (probe, other))
    # A causal model repeats the same sums, to the bit on the kernels we know; encoders with
    # random weights, which look around least, move by 1e-2.
    apart = float(np.abs(first.astype(np.float64) - second).max(initial=0.0))
    return apart if apart > 1e-3 * float(np.abs(first).max(initial=0.0)) else 0.0


def surprises(logits: NDArray[Any], targets: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns -log softmax(logits)[target] of each position, in nats, float64 (T,).

    Args:
        logits: float (T, V).
        targets: int64 (T,), each below V.

    Raises:
        ModelError: if a target is not below V.
    """
    if targets.max() >= logits.shape[1] or targets.min() < 0:
        raise ModelError(
            f"logits | cover {logits.shape[1]} tokens, the text has token {targets.max()}; "
            "give the tokenizer of this model"
        )
    found = np.empty(len(targets))
    for start in range(0, len(targets), _ROWS):
        part = slice(start, start + _ROWS)
        rows = logits[part].astype(np.float64)
        chosen = np.take_along_axis(rows, targets[part, None], axis=1)[:, 0]
        top = rows.max(axis=1)
        found[part] = top + np.log(np.exp(rows - top[:, None]).sum(axis=1)) - chosen
    return found


def text_windows(
    path: Path, tokenizer_file: Path, tokens: int, window: int
) -> NDArray[np.int64]:
    """Cuts the first tokens of a text into windows, int64 (tokens // window, window).

    Args:
        path: UTF-8 text.
        tokenizer_file: see `open_tokenizer`.
        tokens: see `text_tokens`.
        window: see `cut_windows`.

    Raises:
        RecipeError: see `text_tokens` and `cut_windows`.
        ModelError: see `open_tokenizer`.
        RuntimeUnavailable: see `open_tokenizer`.
    """
    ids = text_tokens(path, open_tokenizer(tokenizer_file), tokens)
    return cut_windows(ids, window, window)


def text_tokens(path: Path, encode: Encode, tokens: int | None) -> NDArray[np.int64]:
    """Returns the first tokens of a text, which is tokenized whole, without special tokens.

    Args:
        path: UTF-8 text.
        encode: the tokenizer.
        tokens: how many to take; None takes all.

    Raises:
        RecipeError: if the text is missing, not UTF-8 or too short.
    """
    ids = encode(read_text(path), False)
    if tokens is not None and len(ids) < tokens:
        raise RecipeError(
            f"text '{path}' | has {len(ids)} tokens, {tokens} were asked for; give a longer "
            "text or ask for fewer"
        )
    return np.array(ids[:tokens], dtype=np.int64)


def cut_windows(ids: NDArray[np.int64], window: int, stride: int) -> NDArray[np.int64]:
    """Cuts tokens into windows, int64 (W, T), a view; a last part that fills none is dropped.

    Args:
        ids: int64 (tokens,).
        window: T, at least 2.
        stride: from one window's start to the next's, at least 1.

    Raises:
        RecipeError: if the tokens fill no window.
    """
    if not 2 <= window <= len(ids):
        raise RecipeError(
            f"window | is {window}; expected 2 to {len(ids)}, the tokens there are"
        )
    return sliding_window_view(ids, window)[::stride]


def read_text(path: Path) -> str:
    """Returns a text.

    Raises:
        RecipeError: if it is missing or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(
            f"text '{path}' | cannot be read: {error.strerror}; give a UTF-8 text file"
        ) from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"text '{path}' | is not UTF-8 at byte {error.start}") from error


def open_tokenizer(path: Path) -> Encode:
    """Returns the tokenizer of a file as a function; see `load_tokenizer`."""
    tokenizer = load_tokenizer(path)

    def encode(text: str, special: bool) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=special).ids
        return ids

    return encode


def load_tokenizer(path: Path) -> Any:
    """Returns the `tokenizers.Tokenizer` of a file; truncation and padding are off.

    Args:
        path: `tokenizer.json`.

    Raises:
        ModelError: if the file is missing or damaged.
        RuntimeUnavailable: if the package tokenizers is missing.
    """
    library = require("tokenizers", "cpu")
    if not path.is_file():
        raise ModelError(
            f"tokenizer '{path}' | is not a file; give the model's tokenizer.json"
        )
    try:
        tokenizer = library.Tokenizer.from_file(str(path))
    # The library raises bare Exception, and nothing else is called here.
    except Exception as error:
        raise ModelError(
            f"tokenizer '{path}' | cannot be read: {error}; give the model's tokenizer.json"
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
