"""Windows of tokens from a text.

W: windows. T: tokens in a window.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from patch_compile.errors import RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Windows", "split_windows", "windows"]


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows to learn from and windows to judge by; no two are the same.

    Attributes:
        train: int64 (W, T), in the order of learning.
        held_out: int64 (holdout, T).
    """

    train: NDArray[np.int64]
    held_out: NDArray[np.int64]


def windows(
    sources: Sequence[str | Path],
    tokenizer: "PreTrainedTokenizerBase",
    samples: int,
    window: int,
    seed: int,
) -> NDArray[np.int64]:
    """Picks windows of texts at random, none twice, in the order of the texts.

    Each text is tokenized whole, without special tokens, and cut into windows that do not
    overlap; a last part that fills no window is dropped.

    Args:
        sources: UTF-8 texts, or `.jsonl` with the text of each line under `text`; the tokens
            of its documents follow each other without a mark.
        tokenizer: of the model.
        samples: W.
        window: T.
        seed: of the choice.

    Returns:
        Token numbers, int64 (W, T).

    Raises:
        RecipeError: if a text is missing, empty, not UTF-8, malformed or too short.
    """
    every = _cut(sources, tokenizer, samples, window)
    rng = np.random.default_rng(seed)
    return every[np.sort(rng.choice(len(every), samples, replace=False))]


def split_windows(
    sources: Sequence[str | Path],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    needed: int,
    window: int,
    holdout: int,
    seed: int,
) -> Windows:
    """Shuffles the windows of texts, and sets some aside; see `windows`.

    A longer run with the same seed starts with the same windows and holds out the same.

    Args:
        sources: see `windows`.
        tokenizer: of the model.
        needed: W, windows to learn from.
        window: T.
        holdout: windows set aside.
        seed: of the order.
    """
    every = _cut(sources, tokenizer, needed + holdout, window)
    order = np.random.default_rng(seed).permutation(len(every))
    return Windows(every[order[holdout : holdout + needed]], every[order[:holdout]])


def _cut(
    sources: Sequence[str | Path],
    tokenizer: "PreTrainedTokenizerBase",
    needed: int,
    window: int,
) -> NDArray[np.int64]:
    """Returns all windows of the texts, int64 (W, T), `needed` at least."""
    texts = [_tokens(Path(source), tokenizer) for source in sources]
    parts = [text[: len(text) // window * window].reshape(-1, window) for text in texts]
    every = np.concatenate(parts) if parts else np.empty((0, window), np.int64)
    if len(every) < needed:
        names = ", ".join(f"'{source}'" for source in sources)
        raise RecipeError(
            f"text {names} | has {sum(map(len, texts))} tokens; {needed * window} are needed "
            f"for {needed} windows of {window}; give a longer text or ask for fewer"
        )
    return every


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
