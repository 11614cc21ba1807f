"""Log likelihoods of answers: what lm-evaluation-harness asks of a language model.

B: batch. T: tokens. V: size of the vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import numpy as np

from patch_compile._require import require
from patch_compile.errors import RecipeError
from patch_compile.evaluation.scorers import Scorer

__all__ = ["Answers", "Request"]

Progress = Callable[[int, int, str], None]

# Tokens of a batch, padding included: float32 logits of 1,024 x 49,152 are 201 MB. Beyond
# some hundreds of tokens a CPU gains nothing.
_BATCH = 1024


class Request(Protocol):
    """What is used of an lm-evaluation-harness `Instance`."""

    @property
    def args(self) -> tuple[Any, ...]:
        """The context and its continuation."""
        ...


@dataclass(frozen=True)
class _Pair:
    """A request as tokens; `start` is the index of the continuation's first, at least 1."""

    index: int
    ids: tuple[int, ...]
    start: int


class Answers:
    """The methods of an lm-evaluation-harness model, over an injected scorer.

    It is no subclass of the harness's `LM`, so that it loads and is tested without the
    harness; `harness.run_tasks` makes the class of both.
    """

    def __init__(self, scorer: Scorer, progress: Progress | None = None) -> None:
        super().__init__()
        self._scorer = scorer
        self._progress = progress
        self._opening = _opening(scorer)

    def loglikelihood(self, requests: Sequence[Request]) -> list[tuple[float, bool]]:
        """Returns log p(continuation | context), and whether greedy decoding would give it.

        Context and continuation are tokenized together and cut where the context's own
        tokens end; spaces at the context's end belong to the continuation. Before them stand
        the special tokens that the tokenizer puts before a text. That is how the harness does
        it for models of Hugging Face.

        Args:
            requests: `args` are a context and its continuation.

        Returns:
            In nats, in the order of the requests.

        Raises:
            RecipeError: a context is empty, and the tokenizer opens a text with no token.
            ModelError: the model cannot be run.
        """
        pairs = [self._pair(i, *request.args[:2]) for i, request in enumerate(requests)]
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
        done = 0
        for batch in _batches(pairs):
            for pair, answer in zip(batch, self._answers(batch), strict=True):
                answers[pair.index] = answer
            done += len(batch)
            if self._progress is not None:
                self._progress(done, len(pairs), "answers")
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Request]) -> NoReturn:
        """Refuses: perplexity of a text is taken by windows, with a stated protocol."""
        raise RecipeError(_not_choices("likelihoods of whole texts", len(requests)))

    def generate_until(self, requests: Sequence[Request]) -> NoReturn:
        """Refuses: exported graphs have no cache to generate with."""
        raise RecipeError(_not_choices("generated text", len(requests)))

    def _pair(self, index: int, context: str, continuation: str) -> _Pair:
        text = context.rstrip()
        continuation = context[len(text) :] + continuation
        whole = (*self._opening, *self._scorer.encode(text + continuation, False))
        before = len(self._opening) + len(self._scorer.encode(text, False))
        # A continuation that melts into the context's last token still has that token.
        start = min(before, len(whole) - 1)
        if start < 1:
            raise RecipeError(
                f"tasks | ask for '{continuation[:40]}' without a token before it, and the "
                "tokenizer opens a text with no token of its own; leave that task out"
            )
        return _Pair(index, whole, start)

    def _answers(self, batch: Sequence[_Pair]) -> list[tuple[float, bool]]:
        # Padding stands behind, where no causal model looks.
        ids = np.zeros((len(batch), max(len(pair.ids) for pair in batch)), np.int64)
        for row, pair in zip(ids, batch, strict=True):
            row[: len(pair.ids)] = pair.ids
        logits = self._scorer.score(ids)
        surprises = require("patch_compile.runtimes.perplexity", "cpu").surprises
        answers = []
        for row, pair in zip(logits, batch, strict=True):
            rows = row[pair.start - 1 : len(pair.ids) - 1]
            targets = np.array(pair.ids[pair.start :], np.int64)
            likelihood = -float(surprises(rows, targets).sum())
            answers.append((likelihood, bool((rows.argmax(axis=1) == targets).all())))
        return answers


def _opening(scorer: Scorer) -> tuple[int, ...]:
    """The special tokens that stand before a text, as BOS; those behind it are left out."""
    plain, special = scorer.encode("a", False), scorer.encode("a", True)
    # From behind: the text itself may be an unknown token with the number of BOS.
    starts = reversed(range(len(special) - len(plain) + 1))
    at = next((i for i in starts if special[i : i + len(plain)] == plain), 0)
    return tuple(special[:at])


def _batches(pairs: Sequence[_Pair]) -> Iterator[list[_Pair]]:
    """Yields the longest first: little padding, and memory runs out at once or never."""
    batch: list[_Pair] = []
    for pair in sorted(pairs, key=lambda pair: len(pair.ids), reverse=True):
        if batch and (len(batch) + 1) * len(batch[0].ids) > _BATCH:
            yield batch
            batch = []
        batch.append(pair)
    if batch:
        yield batch


def _not_choices(what: str, count: int) -> str:
    return (
        f"tasks | ask for {what} ({count} requests); expected multiple-choice tasks, as piqa "
        "or arc_easy; the perplexity of a text comes with --data"
    )
