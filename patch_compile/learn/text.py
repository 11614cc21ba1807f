"""Windows of tokens from a text.

W: windows. T: tokens in a window.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from patch_compile.errors import RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["windows"]


def windows(
    path: Path, tokenizer: "PreTrainedTokenizerBase", samples: int, window: int, seed: int
) -> NDArray[np.int64]:
    """Picks windows of a text at random, none twice, in the order of the text.

    The text is tokenized whole, without special tokens, and cut into windows that do not
    overlap; a last part that fills no window is dropped.

    Args:
        path: UTF-8 text, or `.jsonl` with the text of each line under `text`; the tokens of
            its documents follow each other without a mark.
        tokenizer: of the model.
        samples: W.
        window: T.
        seed: of the choice.

    Returns:
        Token numbers, int64 (W, T).

    Raises:
        RecipeError: if the text is missing, empty, not UTF-8, malformed or too short.
    """
    tokens = _tokens(path, tokenizer)
    whole = len(tokens) // window
    if whole < samples:
        raise RecipeError(
            f"text '{path}' | has {len(tokens)} tokens; {samples * window} are needed for "
            f"{samples} windows of {window}; give a longer text or ask for fewer"
        )
    rng = np.random.default_rng(seed)
    picked = np.sort(rng.choice(whole, samples, replace=False))
    return tokens[: whole * window].reshape(whole, window)[picked]


def _tokens(path: Path, tokenizer: "PreTrainedTokenizerBase") -> NDArray[np.int64]:
    documents = list(_documents(path))
    if not documents:
        raise RecipeError(f"text '{path}' | is empty; give a text to calibrate on")
    # Not verbose: a text longer than the model's context is what we want here.
    encoded = tokenizer(documents, add_special_tokens=False, verbose=False)["input_ids"]
    return np.concatenate([np.asarray(ids, np.int64) for ids in encoded])


def _documents(path: Path) -> Iterator[str]:
    """Yields the parts of a text that are not blank."""
    text = _read(path)
    if path.suffix != ".jsonl":
        parts = [text]
    else:
        lines = text.split("\n")
        parts = [_field(path, i, line) for i, line in enumerate(lines, 1) if line.strip()]
    yield from (part for part in parts if part.strip())


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise RecipeError(
            f"text '{path}' | cannot be read: {error.strerror}; give a UTF-8 text file"
        ) from error
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"text '{path}' | is not UTF-8 at byte {error.start}; convert it first"
        ) from error


def _field(path: Path, number: int, line: str) -> str:
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RecipeError(_malformed(path, number)) from error
    if not isinstance(text, str):
        raise RecipeError(_malformed(path, number))
    return text


def _malformed(path: Path, number: int) -> str:
    return f"text '{path}' | line {number} is not a JSON object with a string under 'text'"
