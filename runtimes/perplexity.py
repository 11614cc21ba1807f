"""Perplexity of a language model in ONNX Runtime.

W: windows. T: tokens in a window. V: size of the vocabulary.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patch_compile._require import require
from patch_compile.errors import ModelError, RecipeError
from patch_compile.runtimes.inputs import token_inputs
from patch_compile.runtimes.onnxruntime import Session, run_session

__all__ = ["perplexity", "text_windows"]

Progress = Callable[[int, int, str], None]

# Rows of logits turned to float64 at a time: 64 x 128,256 are 66 MB.
_ROWS = 64


def perplexity(
    session: Session, windows: NDArray[np.int64], progress: Progress | None = None
) -> float:
    """Returns exp of the mean negative log likelihood of each next token.

    Windows are run one at a time and do not see each other; no token is put before them, so
    each gives T - 1 predictions. This is the convention of Wanda, SparseGPT and PATCH.

    Args:
        session: a model from `input_ids` to logits (1, T, V), named `logits` or its first
            output.
        windows: token ids, int64 (W, T), W >= 1, T >= 2.
        progress: called with (windows done, W, "perplexity").

    Raises:
        ModelError: if the model takes other inputs, cannot run, or gives other shapes.
    """
    total = 0.0
    for done, window in enumerate(windows, start=1):
        total += _surprise(_logits(session, window), window[1:])
        if progress is not None:
            progress(done, len(windows), "perplexity")
    mean = total / (windows.shape[0] * (windows.shape[1] - 1))
    # Beyond float64's range a model is as bad as can be, not an error.
    return math.exp(mean) if mean < math.log(np.finfo(np.float64).max) else math.inf


def _logits(session: Session, window: NDArray[np.int64]) -> NDArray[Any]:
    """Returns the logits of all positions but the last, float (T - 1, V)."""
    outputs = run_session(session, token_inputs(session, window[None]))
    name = "logits" if "logits" in outputs else next(iter(outputs))
    logits = outputs[name]
    if logits.ndim != 3 or logits.shape[:2] != (1, len(window)):
        raise ModelError(
            f"output '{name}' | has shape {logits.shape}; expected logits of every position, "
            f"(1, {len(window)}, vocabulary); export the model without a cut to the last token"
        )
    return np.asarray(logits[0, :-1])


def _surprise(logits: NDArray[Any], targets: NDArray[np.int64]) -> float:
    """Returns the summed -log softmax(logits)[target], in nats.

    Args:
        logits: float (T - 1, V).
        targets: int64 (T - 1,), each below V.
    """
    if targets.max() >= logits.shape[1] or targets.min() < 0:
        raise ModelError(
            f"logits | cover {logits.shape[1]} tokens, the text has token {targets.max()}; "
            "give the tokenizer of this model"
        )
    total = 0.0
    for start in range(0, len(targets), _ROWS):
        rows = logits[start : start + _ROWS].astype(np.float64)
        chosen = np.take_along_axis(rows, targets[start : start + _ROWS, None], axis=1)[:, 0]
        top = rows.max(axis=1)
        total += float((top + np.log(np.exp(rows - top[:, None]).sum(axis=1)) - chosen).sum())
    return total


def text_windows(
    path: Path, tokenizer_file: Path, tokens: int, window: int
) -> NDArray[np.int64]:
    """Cuts the first tokens of a text into windows, int64 (tokens // window, window).

    Args:
        path: UTF-8 text.
        tokenizer_file: `tokenizer.json`; its special tokens, truncation and padding are off.
        tokens: how many to take; a last part that fills no window is dropped.
        window: tokens in a window, at least 2.

    Raises:
        RecipeError: if the text is missing or too short, or `tokens` fill no window.
        ModelError: if the tokenizer file is missing or damaged.
        RuntimeUnavailable: if the package tokenizers is missing.
    """
    if not 2 <= window <= tokens:
        raise RecipeError(
            f"window | is {window}; expected 2 to {tokens}, the tokens asked for"
        )
    tokenizer = _tokenizer(tokenizer_file)
    ids = tokenizer.encode(_text(path), add_special_tokens=False).ids
    if len(ids) < tokens:
        raise RecipeError(
            f"text '{path}' | has {len(ids)} tokens, {tokens} were asked for; give a longer "
            "text or ask for fewer"
        )
    whole = tokens // window
    return np.array(ids[: whole * window], dtype=np.int64).reshape(whole, window)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(
            f"text '{path}' | cannot be read: {error.strerror}; give a UTF-8 text file"
        ) from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"text '{path}' | is not UTF-8 at byte {error.start}") from error


def _tokenizer(path: Path) -> Any:
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
