"""What an evaluation found."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Evaluation", "Metric", "PerplexityResult", "TaskResult"]


@dataclass(frozen=True)
class PerplexityResult:
    """A perplexity and how it was taken.

    Attributes:
        value: exp of the mean negative log likelihood, in nats, of all predictions.
        predictions: how many.
        windows: how many.
        window: tokens in a window.
        stride: tokens from one window's start to the next's.
        dropped: last tokens of the text, which fill no window and are left out.
    """

    value: float
    predictions: int
    windows: int
    window: int
    stride: int
    dropped: int


@dataclass(frozen=True)
class Metric:
    """A number of a task, and its standard error where there is one."""

    value: float
    stderr: float | None


@dataclass(frozen=True)
class TaskResult:
    """A zero-shot task.

    Attributes:
        questions: how many were asked.
        metrics: by name: `acc`, and `acc_norm`, for which the likelihood of each choice is
            divided by its length in characters.
    """

    questions: int
    metrics: Mapping[str, Metric]


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    Attributes:
        model: as it was given.
        sparsity: of the masks, zeros over all weights that have one; None without masks.
        perplexity: on the text, where one was given.
        tasks: by name.
        unapplied: masks that an ONNX model has no place for, each with the reason.
    """

    model: str
    sparsity: float | None
    perplexity: PerplexityResult | None
    tasks: Mapping[str, TaskResult]
    unapplied: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Returns what `json.dumps(..., allow_nan=False)` takes: NaN and inf as strings."""
        found: dict[str, Any] = _finite(asdict(self))
        return found


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
