"""Windows of tokens from a text.

W: windows. T: tokens in a window.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from patch_compile.errors import RecipeError
from patch_compile.learn.documents import PIECE, is_dataset, read_file, stream

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Windows", "check_sources", "split_windows", "windows"]


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows to learn from and windows to judge by; no two are the same.

    Attributes:
        train: int64 (W, T), in the order of learning.
        held_out: int64 (holdout, T).
    """

    train: NDArray[np.int64]
    held_out: NDArray[np.int64]


def check_sources(sources: Sequence[str | Path]) -> None:
    """Refuses files that hold no text, by their beginnings; data sets are not asked.

    Raises:
        RecipeError: if a text is missing, empty, not UTF-8 or malformed.
    """
    for source in sources:
        if not is_dataset(source) and not any(read_file(Path(source))):
            raise _empty(source)


def windows(
    sources: Sequence[str | Path],
    tokenizer: "PreTrainedTokenizerBase",
    samples: int,
    window: int,
    seed: int,
) -> NDArray[np.int64]:
    """Picks windows of texts at random, none twice, in the order of the texts.

    Each text is read as a stream, tokenized without special tokens, and cut into windows that
    do not overlap; a last part that fills no window is dropped. What stays in memory is four
    bytes a token.

    Args:
        sources: UTF-8 texts, or `.jsonl` with the text of each line under `text`, or data
            sets, `hf:NAME:CONFIG:SPLIT`, of which as much is read as is needed. The tokens of
            documents follow each other without a mark.
        tokenizer: of the model.
        samples: W.
        window: T.
        seed: of the choice.

    Returns:
        Token numbers, int64 (W, T).

    Raises:
        RecipeError: if a text is missing, empty, not UTF-8, malformed or too short.
        RuntimeUnavailable: if a data set is asked for and `datasets` is not installed.
    """
    every = _cut(sources, tokenizer, samples, window, seed)
    rng = np.random.default_rng(seed)
    chosen = every[np.sort(rng.choice(len(every), samples, replace=False))]
    return chosen.astype(np.int64)


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

    Of files, a longer run with the same seed starts with the same windows and holds out the
    same.

    Args:
        sources: see `windows`.
        tokenizer: of the model.
        needed: W, windows to learn from.
        window: T.
        holdout: windows set aside.
        seed: of the order.
    """
    every = _cut(sources, tokenizer, needed + holdout, window, seed)
    order = np.random.default_rng(seed).permutation(len(every))
    parts = (order[holdout : holdout + needed], order[:holdout])
    return Windows(*(every[part].astype(np.int64) for part in parts))


def _cut(
    sources: Sequence[str | Path],
    tokenizer: "PreTrainedTokenizerBase",
    needed: int,
    window: int,
    seed: int,
) -> NDArray[np.int32]:
    """Returns all windows of the texts, int32 (W, T), `needed` at least."""
    if not sources:
        raise RecipeError(
            "data | is missing, and masks are made from a text; give --data TEXT"
        )
    texts = [_tokens(source, tokenizer, needed * window, seed) for source in sources]
    parts = [text[: len(text) // window * window].reshape(-1, window) for text in texts]
    every = np.concatenate(parts)
    if len(every) < needed:
        names = ", ".join(f"'{source}'" for source in sources)
        raise RecipeError(
            f"text {names} | has {sum(map(len, texts))} tokens; {needed * window} are needed "
            f"for {needed} windows of {window}; give a longer text or ask for fewer"
        )
    return every


def _tokens(
    source: str | Path, tokenizer: "PreTrainedTokenizerBase", enough: int, seed: int
) -> NDArray[np.int32]:
    """Returns the tokens of a file, or of as much of a data set as is enough."""
    endless = is_dataset(source)
    documents = stream(str(source), seed) if endless else read_file(Path(source))
    found: list[NDArray[np.int32]] = []
    for group in _grouped(documents):
        # Not verbose: a text longer than the model's context is what we want here.
        encoded = tokenizer(group, add_special_tokens=False, verbose=False)["input_ids"]
        found += [np.asarray(ids, np.int32) for ids in encoded]
        if endless and sum(map(len, found)) >= enough:
            break
    if not found:
        raise _empty(source)
    return np.concatenate(found)


def _empty(source: str | Path) -> RecipeError:
    return RecipeError(f"text '{source}' | is empty; give a text to calibrate on")


def _grouped(documents: Iterable[str]) -> Iterator[list[str]]:
    """Gathers documents that are not blank to lists of about `PIECE` characters."""
    group: list[str] = []
    size = 0
    for document in documents:
        if not document.strip():
            continue
        group.append(document)
        size += len(document)
        if size >= PIECE:
            yield group
            group, size = [], 0
    if group:
        yield group
