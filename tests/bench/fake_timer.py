"""A runtime whose times are known: what `bench_models` makes of them can be told exactly."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pytest

from patch_compile.recipe import BenchRecipe
from patch_compile.runtimes import timing
from patch_compile.runtimes.timing import ModelFacts


@dataclass
class FakeTimer:
    """Every model named in `factors` takes its factor times a clock that slows down.

    `calls` has what was asked, in order: (file name, what, value).
    """

    factors: dict[str, list[float]]
    calls: list[tuple[str, str, int]] = field(default_factory=list)
    opened: list["FakeModel"] = field(default_factory=list)

    def open_timed(self, model: Path, recipe: BenchRecipe, cache: Path | None) -> "FakeModel":
        self.opened.append(FakeModel(self, model.name, self.factors[model.name].pop(0)))
        return self.opened[-1]

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        module = ModuleType("fake_timer")
        module.open_timed = self.open_timed  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "fake_timer", module)
        monkeypatch.setitem(timing.TIMERS, "ort-cpu", "fake_timer")


@dataclass
class FakeModel:
    timer: FakeTimer
    name: str
    factor: float
    tokens: int = 0
    runs: int = 0
    closed: bool = False

    def feed(self, tokens: int) -> None:
        self.tokens = tokens
        self.timer.calls.append((self.name, "feed", tokens))

    def times(self, runs: int) -> list[float]:
        self.timer.calls.append((self.name, "times", runs))
        self.runs += runs
        return [self.factor * self.tokens * (1 + self.runs / 100)] * runs

    def facts(self) -> ModelFacts:
        return ModelFacts("7.0", "a machine", 0.5, None, {"Fake": 3})

    def close(self) -> None:
        self.closed = True
