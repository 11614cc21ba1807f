"""Documents from files and data sets, one after the other."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from patch_compile._require import require
from patch_compile.errors import RecipeError
from patch_compile.learn._quiet import first_line
from patch_compile.parsing import parse_json

__all__ = ["PIECE", "is_dataset", "read_file", "stream"]

# Bytes that are held and tokenized together: a tokenizer needs a hundred for each.
PIECE = 2**22

# Of these pieces a text without a good place to cut is cut at any.
_PATIENCE = 4

_DATASET = "hf:"

# Documents that a data set's stream is shuffled among.
_SHUFFLED = 1000


def is_dataset(source: str | Path) -> bool:
    """Tells whether a source names a data set rather than a file."""
    return isinstance(source, str) and source.startswith(_DATASET)


def read_file(path: Path) -> Iterator[str]:
    """Yields the documents of a `.jsonl`, or the pieces of a text.

    A text is cut, if it is longer than `PIECE`, between lines where neither is blank nor
    starts with a space: there no tokenizer of bytes makes a token of both sides. Where four
    pieces have no such place, it is cut between any lines, or before a space of a long line,
    and a token there may be another than in the whole text.

    Raises:
        RecipeError: if the file is missing, not UTF-8 or malformed.
    """
    try:
        with path.open("rb") as file:
            if path.suffix == ".jsonl":
                yield from _fields(path, file)
            else:
                yield from _pieces(path, file)
    except OSError as error:
        raise RecipeError(
            f"text '{path}' | cannot be read: {error.strerror}; give a UTF-8 text file"
        ) from error


def _pieces(path: Path, lines: Iterable[bytes]) -> Iterator[str]:
    held: list[bytes] = []
    size = start = 0
    for line in _shortened(lines):
        good = size >= PIECE and held[-1].strip() and not line[:1].isspace()
        if good or size >= _PATIENCE * PIECE:
            yield _decoded(path, b"".join(held), start)
            start += size
            held, size = [], 0
        held.append(line)
        size += len(line)
    yield _decoded(path, b"".join(held), start)


def _shortened(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Cuts lines that are longer than a piece before spaces."""
    for line in lines:
        start = 0
        while len(line) - start > PIECE:
            # Not the first byte: a part is never empty.
            end = line.rfind(b" ", start + 1, start + PIECE)
            if end < 0:
                break
            yield line[start:end]
            start = end
        yield line[start:]


def _fields(path: Path, lines: Iterable[bytes]) -> Iterator[str]:
    start = 0
    for number, line in enumerate(lines, 1):
        text = _decoded(path, line, start)
        start += len(line)
        if text.strip():
            yield _field(path, number, text)


def _decoded(path: Path, data: bytes, start: int) -> str:
    try:
        return data.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"text '{path}' | is not UTF-8 at byte {start + error.start}; convert it first"
        ) from error


def _field(path: Path, number: int, line: str) -> str:
    try:
        text = parse_json(line)["text"]
    except (ValueError, KeyError, TypeError) as error:
        raise RecipeError(_malformed(path, number)) from error
    if not isinstance(text, str):
        raise RecipeError(_malformed(path, number))
    return text


def _malformed(path: Path, number: int) -> str:
    return f"text '{path}' | line {number} is not a JSON object with a string under 'text'"


def stream(source: str, seed: int) -> Iterator[str]:
    """Yields the texts of a data set as they arrive, shuffled by the seed.

    Args:
        source: `hf:NAME`, `hf:NAME:CONFIG` or `hf:NAME:CONFIG:SPLIT`, of the hub or a folder;
            the split is `train` unless it is told. Documents are under `text`.
        seed: of the order.

    Raises:
        RecipeError: if the data set cannot be had or has no such config, split or field.
        RuntimeUnavailable: if `datasets` is not installed.
    """
    library = require("datasets", "data")
    name, config, split = _named(source)
    try:
        rows = library.load_dataset(name, config, split=split, streaming=True)
        for row in rows.shuffle(seed=seed, buffer_size=_SHUFFLED):
            yield _text_of(source, row)
    except (OSError, ValueError, RuntimeError, library.exceptions.DatasetsError) as error:
        raise RecipeError(
            f"text '{source}' | cannot be had: {first_line(error)}; check its name, its split "
            "and the connection, or give a file"
        ) from error


def _named(source: str) -> tuple[str, str | None, str]:
    name, *more = source.removeprefix(_DATASET).split(":")
    if not name or len(more) > 2:
        raise RecipeError(
            f"text '{source}' | names no data set; expected hf:NAME, hf:NAME:CONFIG or "
            "hf:NAME:CONFIG:SPLIT"
        )
    config, split = (*more, "", "")[:2]
    return name, config or None, split or "train"


def _text_of(source: str, row: dict[str, Any]) -> str:
    text = row.get("text")
    if not isinstance(text, str):
        raise RecipeError(
            f"text '{source}' | has rows of {sorted(row)}; expected strings under 'text'"
        )
    return text
