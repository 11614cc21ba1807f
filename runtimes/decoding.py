"""Language models that are asked for one token after the other, with a cache or without.

P: tokens read before. T: tokens read now. V: size of the vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from patch_compile.errors import ModelError
from patch_compile.recipe import GenerateRecipe
from patch_compile.runtimes.inputs import token_inputs
from patch_compile.runtimes.onnxruntime import Session, open_session, run_session
from patch_compile.runtimes.perplexity import check_causal, session_length, session_scorer
from patch_compile.runtimes.sampling import next_token

__all__ = ["Decoder", "Reader", "Step", "continued", "open_decoder"]

_PAST, _PRESENT = "past_key_values", "present"


class Reader(Protocol):
    """Reads a text on and on."""

    def read(self, tokens: Sequence[int]) -> NDArray[Any]:
        """Reads the tokens that come next, at least one, and returns the logits (V,) after."""
        ...


@dataclass(frozen=True)
class Decoder:
    """A model that predicts the next token.

    Attributes:
        session: of the model.
        subject: opens its error messages.
        cache: the output that each input of the cache takes its next value from, by name;
            empty for a model that reads the whole text for every token.
        vocabulary: V, if the graph tells.
    """

    session: Session
    subject: str
    cache: dict[str, str]
    vocabulary: int | None

    def reader(self) -> Reader:
        """Starts a new text."""
        return _Cached(self) if self.cache else _Whole(self)


def open_decoder(path: Path) -> Decoder:
    """Opens a model on the CPU and checks that it is a decoder.

    Its inputs are `input_ids`, perhaps `attention_mask`, `position_ids` and
    `token_type_ids`, and perhaps a cache, `past_key_values.*`, whose outputs are named
    `present.*`: the names of optimum, of onnxruntime-genai's builder and of `export`.

    Raises:
        ModelError: if it cannot be opened, has other inputs, a cache of a fixed length or
            without outputs, or sees later tokens, as an encoder does.
        RuntimeUnavailable: if onnxruntime is missing.
    """
    session, subject = open_session(path), f"model '{path}'"
    cache = _cache(session, subject)
    if not cache:
        check_causal(str(path), session_scorer(session), session_length(session))
    outputs = session.get_outputs()
    logits = next((output for output in outputs if output.name == "logits"), outputs[0])
    width = logits.shape[-1] if logits.shape else None
    decoder = Decoder(session, subject, cache, width if isinstance(width, int) else None)
    # The first runs allocate; they are no part of any text's time.
    warm = decoder.reader()
    warm.read([0])
    warm.read([0])
    return decoder


def _cache(session: Session, subject: str) -> dict[str, str]:
    """Pairs the inputs of the cache with outputs."""
    outputs = {output.name for output in session.get_outputs()}
    # Refuses other inputs too.
    first = token_inputs(session, np.zeros((1, 1), np.int64))
    found = {}
    for name, empty in first.items():
        if not name.startswith("past"):
            continue
        found[name] = name.replace(_PAST, _PRESENT)
        if found[name] not in outputs or found[name] == name:
            raise ModelError(
                f"{subject} | has the input '{name}' and no output '{found[name]}'; expected "
                "past_key_values.N.key and present.N.key, as `export --with-past` writes them"
            )
        if empty.size:
            raise ModelError(
                f"{subject} | has a cache of a fixed length: '{name}' is {empty.shape}; "
                "expected one that grows; export it with a dynamic past"
            )
    return found


@dataclass
class _Cached:
    """Reads every token once; keys and values of those before go round."""

    decoder: Decoder
    past: dict[str, NDArray[Any]] = field(default_factory=dict)
    length: int = 0

    def read(self, tokens: Sequence[int]) -> NDArray[Any]:
        """See `Reader`."""
        decoder, count = self.decoder, len(tokens)
        feeds = token_inputs(decoder.session, np.array([tokens], np.int64)) | self.past
        total = self.length + count
        seen = {
            "attention_mask": np.ones((1, total)),
            "position_ids": np.arange(self.length, total)[None],
        }
        for name in seen.keys() & feeds.keys():
            feeds[name] = seen[name].astype(feeds[name].dtype)
        outputs = run_session(decoder.session, feeds, decoder.subject)
        self.past = {past: outputs[present] for past, present in decoder.cache.items()}
        self.length = total
        return _last(outputs, decoder.subject)


@dataclass
class _Whole:
    """Reads the text from its start for every token."""

    decoder: Decoder
    tokens: list[int] = field(default_factory=list)

    def read(self, tokens: Sequence[int]) -> NDArray[Any]:
        """See `Reader`."""
        self.tokens += tokens
        feeds = token_inputs(self.decoder.session, np.array([self.tokens], np.int64))
        outputs = run_session(self.decoder.session, feeds, self.decoder.subject)
        return _last(outputs, self.decoder.subject)


def _last(outputs: dict[str, NDArray[Any]], subject: str) -> NDArray[Any]:
    """The logits after the last token."""
    name = "logits" if "logits" in outputs else next(iter(outputs))
    logits = outputs[name]
    if logits.ndim != 3 or logits.shape[0] != 1 or not logits.size:
        raise ModelError(
            f"{subject} | gives '{name}' of shape {logits.shape}; expected logits, (1, "
            "tokens, vocabulary); give a language model"
        )
    row: NDArray[Any] = logits[0, -1]
    if not np.isfinite(row.max()):
        raise ModelError(
            f"{subject} | gives logits up to {row.max()}; expected finite ones; an fp16 model "
            "that overflows works in fp32"
        )
    return row


@dataclass(frozen=True)
class Step:
    """One token that was chosen, and the seconds that reading and choosing took."""

    token: int
    seconds: float


def continued(
    reader: Reader, prompt: Sequence[int], recipe: GenerateRecipe, rng: np.random.Generator
) -> Iterator[Step]:
    """Yields token after token, at most `recipe.max_new_tokens`; the caller may stop earlier.

    Args:
        reader: of a new text.
        prompt: its first tokens, at least one; reading them is in the first step's time.
        recipe: how to choose.
        rng: draws one number a token.
    """
    tokens = prompt
    for _ in range(recipe.max_new_tokens):
        start = perf_counter()
        token = next_token(reader.read(tokens), recipe, rng.random())
        yield Step(token, perf_counter() - start)
        tokens = [token]
