"""What a benchmark found."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from patch_compile.bench.statistics import Interval, Verdict
from patch_compile.recipe import BenchRecipe

__all__ = ["BenchResult", "BenchRow", "Measured"]


@dataclass(frozen=True)
class BenchRow:
    """One model at one number of tokens.

    Attributes:
        model: its label: `dense`, `dense again`, `compiled` or a baseline's name.
        tokens: of each sequence.
        seconds: a run takes.
        ratio: of its latency to that of `dense` in the same rounds.
        verdict: what the ratio shows against the noise; None for `dense` itself.
        tokens_per_second: of the whole batch, at the median.
        predicted: ratios that the report beside the model predicted, by target.
        samples: seconds of each round, in order.
    """

    model: str
    tokens: int
    seconds: Interval
    ratio: Interval
    verdict: Verdict | None
    tokens_per_second: float
    predicted: Mapping[str, float]
    samples: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns every number by name."""
        return asdict(self)


@dataclass(frozen=True)
class Measured:
    """One model, whatever the tokens.

    Attributes:
        model: its label.
        path: the .onnx file.
        bytes: of the file and its external data.
        build_seconds: the runtime took to be ready.
        peak_bytes: most memory its process held on the host; None if unknown.
        nodes: after the runtime's own rewrites, by provider; None if unknown.
    """

    model: str
    path: str
    bytes: int
    build_seconds: float
    peak_bytes: int | None
    nodes: Mapping[str, int] | None


@dataclass(frozen=True)
class BenchResult:
    """A whole benchmark.

    Attributes:
        recipe: what was asked.
        version: of the runtime.
        rows: by tokens, then by model.
        models: `dense` first.
        noise: by tokens, how far from 1 the ratio of `dense again` to `dense` may lie.
    """

    recipe: BenchRecipe
    version: str
    rows: tuple[BenchRow, ...]
    models: tuple[Measured, ...]
    noise: Mapping[int, float]

    def to_json(self) -> dict[str, Any]:
        """Returns all of it as `json.dumps(..., allow_nan=False)` takes it."""
        return {
            "version": 1,
            "runtime": {"name": self.recipe.runtime, "version": self.version},
            "recipe": asdict(self.recipe),
            "noise": {str(tokens): floor for tokens, floor in self.noise.items()},
            "models": [asdict(model) for model in self.models],
            "rows": [row.to_json() for row in self.rows],
        }
