"""Prompts to tokens and tokens to text, as the files beside a tokenizer say."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from patch_compile.errors import ModelError, RecipeError
from patch_compile.parsing import parse_json
from patch_compile.runtimes.perplexity import load_tokenizer

__all__ = ["Spelling", "TextCodec", "open_codec"]

# What stands for bytes that are no whole character yet.
_BROKEN = "\ufffd"

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True, eq=False)
class TextCodec:
    """A tokenizer and what its model's files say of texts.

    Attributes:
        tokenizer: a `tokenizers.Tokenizer`.
        folder: where it came from, for messages.
        ends: tokens that end a text.
        longest: tokens that the model takes at most, if its configuration says.
        template: of a chat, in Jinja.
        special: names of special tokens, as `bos_token`, and what stands for them.
    """

    tokenizer: Any
    folder: Path
    ends: frozenset[int] = frozenset()
    longest: int | None = None
    template: str | None = None
    special: Mapping[str, str] = field(default_factory=dict)

    def encode(self, prompt: str, *, chat: bool) -> list[int]:
        """Returns the tokens of a prompt, with the special tokens that a text starts with.

        Args:
            prompt: what was asked.
            chat: put it into the chat template.

        Raises:
            RecipeError: if it has no tokens, or is no text.
            ModelError: if there is no chat template, or it fails.
        """
        if not _is_text(prompt):
            raise RecipeError(f"prompt {prompt!r} | is not UTF-8; give text")
        text = self._chat(prompt) if chat else prompt
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=not chat).ids
        if not ids:
            raise RecipeError(f"prompt {prompt!r} | has no tokens; give some text")
        return ids

    def decode(self, tokens: Sequence[int]) -> str:
        """Returns the text of tokens, without special ones."""
        text: str = self.tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text

    def _chat(self, prompt: str) -> str:
        if self.template is None:
            raise ModelError(
                f"tokenizer '{self.folder}' | has no chat template; leave --chat out, or put "
                "chat_template.jinja there"
            )
        # A template is code of whoever made the model: it gets no way out.
        rooms = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        rooms.globals["raise_exception"] = _refuse
        try:
            text = rooms.from_string(self.template).render(
                messages=[{"role": "user", "content": prompt}],
                add_generation_prompt=True,
                **self.special,
            )
            # Halves of surrogate pairs are no text.
            text.encode()
        # It is foreign code, and raises what it likes.
        except Exception as error:
            raise ModelError(
                f"tokenizer '{self.folder}' | has a chat template that fails: "
                f"{' '.join(str(error).split())}; leave --chat out"
            ) from error
        return text


def _is_text(words: str) -> bool:
    """Arguments hold halves of surrogate pairs in place of bytes that are no UTF-8."""
    return all(not "\ud800" <= letter <= "\udfff" for letter in words)


def _refuse(message: str) -> None:
    raise TemplateError(message)


class Spelling:
    """The text of a growing list of tokens, in pieces that later tokens leave as they are."""

    def __init__(self, decode: Decode, prompt: Sequence[int]) -> None:
        self._decode = decode
        self._tokens = list(prompt)
        self._start = self._shown = len(decode(prompt))

    def add(self, token: int) -> str:
        """Takes one token more and returns the text that became certain."""
        self._tokens.append(token)
        text = self._decode(self._tokens)
        return "" if text.endswith(_BROKEN) else self._rest(text)

    def end(self) -> str:
        """Returns what is left, whole characters or not."""
        return self._rest(self._decode(self._tokens))

    @property
    def text(self) -> str:
        """All of the text behind the prompt."""
        return self._decode(self._tokens)[self._start :]

    def _rest(self, text: str) -> str:
        piece = text[self._shown :]
        self._shown = max(self._shown, len(text))
        return piece


def open_codec(place: Path) -> TextCodec:
    """Reads a tokenizer and the configuration beside it.

    Args:
        place: a folder with `tokenizer.json`, or that file; `config.json`,
            `generation_config.json`, `tokenizer_config.json` and `chat_template.jinja` beside
            it are read where they are.

    Raises:
        ModelError: if the tokenizer is missing, or one of the files damaged.
        RuntimeUnavailable: if the package tokenizers is missing.
    """
    path = place / "tokenizer.json" if place.is_dir() else place
    folder = path.parent
    tokenizer = load_tokenizer(path)
    model = _facts(folder / "config.json")
    words = _facts(folder / "tokenizer_config.json")
    ends = _facts(folder / "generation_config.json").get("eos_token_id")
    longest = model.get("max_position_embeddings", model.get("n_positions"))
    return TextCodec(
        tokenizer,
        folder,
        _ids(model.get("eos_token_id") if ends is None else ends),
        longest if isinstance(longest, int) else None,
        _template(folder, words),
        {name: _spelt(value) for name, value in words.items() if name.endswith("_token")},
    )


def _facts(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        facts = parse_json(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"file '{path}' | cannot be read: {' '.join(str(error).split())}; restore it"
        ) from error
    if not isinstance(facts, dict):
        raise ModelError(f"file '{path}' | is no table of names and values; restore it")
    return facts


def _ids(found: Any) -> frozenset[int]:
    many = found if isinstance(found, list) else [found]
    return frozenset(token for token in many if isinstance(token, int))


def _template(folder: Path, words: Mapping[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text("utf-8", errors="replace")
    found = words.get("chat_template")
    if isinstance(found, list):
        named = [part for part in found if isinstance(part, dict)]
        found = {part.get("name"): part.get("template") for part in named}.get("default")
    return found if isinstance(found, str) else None


def _spelt(token: Any) -> str:
    """Older files keep a token as a table."""
    return str(token.get("content", "")) if isinstance(token, dict) else str(token or "")
