"""Sessions that need no model, for what only looks at names, shapes and outputs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray


@dataclass(frozen=True)
class FakeArgument:
    name: str
    shape: tuple[int | str | None, ...]
    type: str = "tensor(float)"


@dataclass(frozen=True)
class FakeSession:
    """Gives the same outputs whatever it is fed."""

    inputs: tuple[FakeArgument, ...] = ()
    outputs: Mapping[str, NDArray[Any]] | None = None

    def get_inputs(self) -> Sequence[FakeArgument]:
        return self.inputs

    def get_outputs(self) -> Sequence[FakeArgument]:
        return [FakeArgument(name, a.shape) for name, a in (self.outputs or {}).items()]

    def get_providers(self) -> Sequence[str]:
        return ["CPUExecutionProvider"]

    def run(
        self, output_names: Sequence[str] | None, input_feed: Mapping[str, NDArray[Any]]
    ) -> list[Any]:
        outputs = self.outputs or {}
        return [outputs[name] for name in output_names or outputs]
