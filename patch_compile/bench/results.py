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
        verdict: what the ratio shows against the noise; None for `dense` itself, and where
            nobody told the noise.
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
        bytes: of the file and its external data; None if unknown.
        build_seconds: the runtime took to be ready; None if unknown.
        peak_bytes: most memory its process held on the host; None if unknown.
        nodes: after the runtime's own rewrites, by provider; None if unknown.
        engine_bytes: size of its engine; None where there is none or nobody tells.
        device_bytes: of the GPU's memory, as `ModelFacts` has it; None if unknown.
        types: of its weights, as ONNX names them; empty if unknown.
    """

    model: str
    path: str
    bytes: int | None
    build_seconds: float | None
    peak_bytes: int | None
    nodes: Mapping[str, int] | None
    engine_bytes: int | None = None
    device_bytes: int | None = None
    types: tuple[str, ...] = ()


@dataclass(frozen=True)
class BenchResult:
    """A whole benchmark.

    Attributes:
        recipe: what was asked.
        version: of the runtime.
        device: name of the GPU or processor.
        rows: by tokens, then by model.
        models: `dense` first.
        noise: by tokens, how far from 1 the ratio of `dense again` to `dense` may lie.
    """

    recipe: BenchRecipe
    version: str
    device: str
    rows: tuple[BenchRow, ...]
    models: tuple[Measured, ...]
    noise: Mapping[int, float]

    def to_json(self) -> dict[str, Any]:
        """Returns all of it as `json.dumps(..., allow_nan=False)` takes it."""
        return {
            "version": 1,
            "runtime": {
                "name": self.recipe.runtime,
                "version": self.version,
                "device": self.device,
            },
            "recipe": asdict(self.recipe),
            "noise": {str(tokens): floor for tokens, floor in self.noise.items()},
            "models": [asdict(model) for model in self.models],
            "rows": [row.to_json() for row in self.rows],
        }

    @property
    def cast(self) -> bool:
        """The compiled model's weights are of other types than the dense one's."""
        types = {model.model: model.types for model in self.models}
        dense, compiled = types.get("dense", ()), types.get("compiled", ())
        return bool(dense and compiled) and dense != compiled

    def versions(self) -> dict[str, str]:
        """Returns the release of the package that ran the models."""
        package = "tensorrt" if self.recipe.runtime == "trtexec" else "onnxruntime"
        return {package: self.version} if self.version else {}

    def to_report(self) -> list[dict[str, Any]]:
        """Returns what a report keeps: a row a number of tokens, without samples."""
        return [
            self._reported(tokens) for tokens in dict.fromkeys(r.tokens for r in self.rows)
        ]

    def _reported(self, tokens: int) -> dict[str, Any]:
        rows = {row.model: row for row in self.rows if row.tokens == tokens}
        compiled = rows["compiled"]
        return {
            "runtime": self.recipe.runtime,
            "version": self.version,
            "device": self.device,
            "batch": self.recipe.batch,
            "tokens": tokens,
            "rounds": self.recipe.rounds,
            "confidence": self.recipe.confidence,
            "dense_seconds": rows["dense"].seconds.median,
            "compiled_seconds": compiled.seconds.median,
            "ratio": compiled.ratio.to_json(),
            "noise": self.noise.get(tokens),
            "verdict": compiled.verdict,
            "cast": self.cast,
            "baselines": {
                name: row.ratio.to_json()
                for name, row in rows.items()
                if name != "compiled" and not name.startswith("dense")
            },
        }
