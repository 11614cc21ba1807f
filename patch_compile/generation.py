"""What do the models write? Prompts are run through several of them on ONNX Runtime.

V: size of the vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from patch_compile._require import require
from patch_compile.errors import ModelError, RecipeError
from patch_compile.recipe import GenerateRecipe

if TYPE_CHECKING:
    from patch_compile.runtimes.decoding import Decoder
    from patch_compile.runtimes.text_codec import TextCodec

__all__ = [
    "Answer",
    "Asked",
    "Difference",
    "Generated",
    "Generation",
    "Listener",
    "generate",
    "open_generation",
]

Progress = Callable[[int, int, str], None]
# (index of the prompt, index of the model, text that follows what came before)
Listener = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Difference:
    """Where an answer leaves the first model's.

    Attributes:
        at: index of the first token that is another.
        first: the first model's token there as text, or as `<number>` if it is a special
            one; empty where its answer was over.
        here: this one's.
    """

    at: int
    first: str
    here: str


@dataclass(frozen=True)
class Answer:
    """What one model wrote after one prompt.

    Attributes:
        model: its label.
        text: behind the prompt, special tokens left out.
        tokens: behind the prompt; the one that ended the text is not among them.
        stopped: `end` at a token that ends texts, `length` at the most that was asked for.
        prompt_seconds: for reading the prompt and choosing the first token.
        seconds: for all tokens after the first.
        later: how many those are, the ending one among them.
        difference: from the first model's answer; None where there is none.
    """

    model: str
    text: str
    tokens: tuple[int, ...]
    stopped: str
    prompt_seconds: float
    seconds: float
    later: int
    difference: Difference | None = None

    @property
    def tokens_per_second(self) -> float | None:
        """Of the tokens after the first; None where there was one alone."""
        return self.later / self.seconds if self.later else None

    def to_json(self) -> dict[str, Any]:
        """Returns what `json.dumps(..., allow_nan=False)` takes."""
        return {**asdict(self), "tokens_per_second": self.tokens_per_second}


@dataclass(frozen=True)
class Asked:
    """One prompt and every model's answer, in the order of the models."""

    prompt: str
    tokens: tuple[int, ...]
    answers: tuple[Answer, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns what `json.dumps(..., allow_nan=False)` takes."""
        answers = [answer.to_json() for answer in self.answers]
        return {"prompt": self.prompt, "tokens": list(self.tokens), "answers": answers}


@dataclass(frozen=True)
class Generated:
    """All that was written.

    Attributes:
        cached: by model label, whether the model keeps a cache.
        prompts: in the order given.
        recipe: how tokens were chosen.
    """

    cached: dict[str, bool]
    prompts: tuple[Asked, ...]
    recipe: GenerateRecipe

    def to_json(self) -> dict[str, Any]:
        """Returns what `json.dumps(..., allow_nan=False)` takes."""
        return {
            "version": 1,
            "models": [{"model": m, "cache": cached} for m, cached in self.cached.items()],
            "prompts": [asked.to_json() for asked in self.prompts],
            "recipe": asdict(self.recipe),
        }


@dataclass(frozen=True, eq=False)
class Generation:
    """Models that are open, and the prompts that they are to read.

    Attributes:
        decoders: by label.
        codec: the tokenizer of all of them.
        prompts: each with its tokens.
        recipe: how to choose tokens.
    """

    decoders: "dict[str, Decoder]"
    codec: "TextCodec"
    prompts: tuple[tuple[str, tuple[int, ...]], ...]
    recipe: GenerateRecipe

    @property
    def cached(self) -> dict[str, bool]:
        """By model label, whether the model keeps a cache."""
        return {label: bool(decoder.cache) for label, decoder in self.decoders.items()}

    def run(self, listen: Listener | None = None) -> Generated:
        """Runs prompt after prompt, each through model after model."""
        asked = [self._asked(index, listen) for index in range(len(self.prompts))]
        return Generated(self.cached, tuple(asked), self.recipe)

    def _asked(self, prompt: int, listen: Listener | None) -> Asked:
        text, tokens = self.prompts[prompt]
        answers: list[Answer] = []
        for index, label in enumerate(self.decoders):
            answer = self._answer(label, prompt, partial(listen or _ignore, prompt, index))
            if answers:
                found = self._difference(answers[0].tokens, answer.tokens)
                answer = replace(answer, difference=found)
            answers.append(answer)
        return Asked(text, tokens, tuple(answers))

    def _answer(self, label: str, prompt: int, tell: Callable[[str], None]) -> Answer:
        decoding = require("patch_compile.runtimes.decoding", "cpu")
        codec = require("patch_compile.runtimes.text_codec", "cpu")
        asked = self.prompts[prompt][1]
        # One seed a prompt: its answer does not depend on the prompts before.
        rng = np.random.default_rng([self.recipe.seed, prompt])
        spelling = codec.Spelling(self.codec.decode, asked)
        ends = frozenset[int]() if self.recipe.ignore_end else self.codec.ends
        tokens: list[int] = []
        seconds: list[float] = []
        reader = self.decoders[label].reader()
        for step in decoding.continued(reader, asked, self.recipe, rng):
            seconds.append(step.seconds)
            if step.token in ends:
                break
            tokens.append(step.token)
            tell(spelling.add(step.token))
        tell(spelling.end())
        stopped = "end" if len(tokens) < len(seconds) else "length"
        first, *later = seconds
        return Answer(
            label, spelling.text, tuple(tokens), stopped, first, sum(later), len(later)
        )

    def _difference(self, first: Sequence[int], here: Sequence[int]) -> Difference | None:
        shared = min(len(first), len(here))
        pairs = zip(first, here, strict=False)
        at = next((i for i, (a, b) in enumerate(pairs) if a != b), shared)
        if at == len(first) == len(here):
            return None
        return Difference(at, *(self._spelt(tokens[at : at + 1]) for tokens in (first, here)))

    def _spelt(self, tokens: Sequence[int]) -> str:
        """One token as text, by its number if it has none, or nothing if there is none."""
        return self.codec.decode(tokens) or "".join(f"<{token}>" for token in tokens)


def _ignore(*_: object) -> None:
    """Listens to nothing."""


def generate(
    models: Sequence[str | Path],
    prompts: Sequence[str],
    recipe: GenerateRecipe | None = None,
    *,
    tokenizer: str | Path | None = None,
    listen: Listener | None = None,
    progress: Progress | None = None,
) -> Generated:
    """Runs prompts through decoders on onnxruntime's CPU provider, one model after the other.

    Models with a cache (`export --with-past`) read every token once; others read the whole
    text again for every token. All models are open at the same time.

    Args:
        models: .onnx files, as a dense one and what it was compiled to; differences are
            counted against the first.
        prompts: texts to go on from.
        recipe: see `GenerateRecipe`.
        tokenizer: folder of `tokenizer.json`, or the file; by default the first model's.
        listen: called with (index of the prompt, index of the model, more text).
        progress: called with (models opened, models, what).

    Raises:
        ModelError: a model cannot be run, is no decoder or has another vocabulary, or the
            tokenizer is missing.
        RecipeError: there is no model or prompt, or prompt and answer are too long.
        RuntimeUnavailable: onnxruntime or tokenizers is missing.
    """
    opened = open_generation(models, prompts, recipe, tokenizer=tokenizer, progress=progress)
    return opened.run(listen)


def open_generation(
    models: Sequence[str | Path],
    prompts: Sequence[str],
    recipe: GenerateRecipe | None = None,
    *,
    tokenizer: str | Path | None = None,
    progress: Progress | None = None,
) -> Generation:
    """Opens models and encodes prompts; see `generate`."""
    recipe = recipe or GenerateRecipe()
    paths = [Path(model) for model in models]
    if not paths or not prompts:
        raise RecipeError("generate | has no model or no prompt; give both")
    decoding = require("patch_compile.runtimes.decoding", "cpu")
    require("onnxruntime", "cpu")
    text = require("patch_compile.runtimes.text_codec", "cpu")
    codec: TextCodec = text.open_codec(Path(tokenizer or paths[0].parent))
    asked = [(prompt, tuple(codec.encode(prompt, chat=recipe.chat))) for prompt in prompts]
    for _, tokens in asked:
        _check_length(len(tokens), codec, recipe)
    decoders: dict[str, Decoder] = {}
    for done, (label, path) in enumerate(_labelled(paths)):
        if progress is not None:
            progress(done, len(paths), "opening models")
        decoders[label] = decoding.open_decoder(path)
        _check_words(decoders[label], asked)
    return Generation(decoders, codec, tuple(asked), recipe)


def _check_length(tokens: int, codec: "TextCodec", recipe: GenerateRecipe) -> None:
    # The last token is not read any more.
    most = tokens + recipe.max_new_tokens - 1
    if codec.longest is not None and most > codec.longest:
        raise RecipeError(
            f"prompt | has {tokens} tokens, and up to {recipe.max_new_tokens} are to follow; "
            f"the model takes {codec.longest} (config.json); ask for fewer (--max-new-tokens)"
        )


def _check_words(decoder: "Decoder", asked: Sequence[tuple[str, tuple[int, ...]]]) -> None:
    largest = max(token for _, tokens in asked for token in tokens)
    if decoder.vocabulary is not None and largest >= decoder.vocabulary:
        raise ModelError(
            f"{decoder.subject} | knows {decoder.vocabulary} tokens, and the prompt has token "
            f"{largest}; give the tokenizer of this model (--tokenizer)"
        )


def _labelled(paths: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    """As much of each path's end as tells it from the others; a model given twice says so."""
    seen: dict[str, int] = {}
    for path in paths:
        label = _tail(path, [other for other in paths if other != path])
        seen[label] = seen.get(label, 0) + 1
        yield label if seen[label] == 1 else f"{label} ({seen[label]})", path


def _tail(path: Path, others: Sequence[Path]) -> str:
    for count in range(1, len(path.parts)):
        tail = path.parts[-count:]
        if all(other.parts[-count:] != tail for other in others):
            return str(Path(*tail))
    return str(path)
