"""Which products of a model stand the few steps of a quantised activation.

One scale serves all tokens of an activation. In many language models a few elements, of one
token or of a few features, are a thousand times as large as the rest ("massive activations",
Sun et al., arXiv 2402.17762): their scale leaves the rest no steps at all, and clipping them
away is worse. What tells is the error of a typical token: rounding to steps of s adds noise of
s / sqrt(12) to each element, here held against the token's root mean square.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from patch_compile._require import require
from patch_compile.io.onnx_model import load_model, save_model
from patch_compile.passes.observed import Observed, observe

if TYPE_CHECKING:
    from patch_compile.runtimes.onnxruntime import Session

__all__ = ["Activation", "Sensitivity", "sensitivities"]

Progress = Callable[[int, int, str], None]
Feeds = Mapping[str, NDArray[Any]]

# The finest step of a type over its largest number: 1 of 127, and fp8 e4m3's 2^-9 of 448.
_STEPS = {"int8": 1 / 127, "fp8": 2.0**-9 / 448}


@dataclass(frozen=True)
class Activation:
    """The input or output of a product.

    Attributes:
        peak: its largest magnitude.
        typical: root mean square of a typical token: the median over tokens.
    """

    peak: float
    typical: float

    def error(self, kind: str) -> float:
        """Returns the share of a typical token that rounding loses, 0 to 1.

        Args:
            kind: `int8` or `fp8`. What an fp8 number itself is too short for, about 0.03, is
                not in it.
        """
        if self.peak == 0.0:
            return 0.0
        if self.typical == 0.0:
            return 1.0
        return min(1.0, self.peak * _STEPS[kind] / math.sqrt(12) / self.typical)


@dataclass(frozen=True)
class Sensitivity:
    """What was measured of one product: of its input, and of its output."""

    input: Activation
    output: Activation

    def error(self, kind: str) -> float:
        """Returns the larger of both errors; see `Activation.error`."""
        return max(self.input.error(kind), self.output.error(kind))

    def to_json(self, kind: str) -> dict[str, Any]:
        """Returns errors and what they were made from, by name."""
        ends = {"input": self.input, "output": self.output}
        return {name: {"error": a.error(kind), **asdict(a)} for name, a in ends.items()}


def sensitivities(
    model: Path,
    products: Sequence[str],
    feeds: Sequence[Feeds],
    progress: Progress | None = None,
) -> dict[str, Sensitivity]:
    """Runs a model and measures the inputs and outputs of products.

    Args:
        model: the .onnx file, which is copied with all of its weights for that.
        products: names of nodes of the main graph.
        feeds: inputs, a window each.
        progress: called with (windows done, windows in all, what).

    Raises:
        ModelError: the model cannot be read or run.
        RuntimeUnavailable: onnxruntime is missing.
    """
    runtime = require("patch_compile.runtimes.onnxruntime", "cpu")
    graph = load_model(model)
    ends = _ends(graph, frozenset(products))
    values = {value.name or "": value for pair in ends.values() for value in pair}
    observed = observe(graph, list(values.values()))
    with TemporaryDirectory(prefix="patch-compile-") as folder:
        save_model(graph, Path(folder) / model.name)
        session = runtime.open_session(Path(folder) / model.name)
        found = _measured(session, observed, feeds, progress)
    return {
        name: Sensitivity(found[x.name or ""], found[y.name or ""])
        for name, (x, y) in ends.items()
    }


def _ends(model: ir.Model, products: frozenset[str]) -> dict[str, tuple[ir.Value, ir.Value]]:
    """Input and output of each product, by node name."""
    nodes = [node for node in model.graph if node.name in products]
    return {n.name or "": (x, n.outputs[0]) for n in nodes if (x := n.inputs[0]) is not None}


def _measured(
    session: "Session",
    observed: Mapping[str, Observed],
    feeds: Sequence[Feeds],
    progress: Progress | None,
) -> dict[str, Activation]:
    peaks: dict[str, list[float]] = {name: [] for name in observed}
    powers: dict[str, list[NDArray[np.float32]]] = {name: [] for name in observed}
    for done, feed in enumerate(feeds, start=1):
        outputs = [part for names in observed.values() for part in (names.peak, names.power)]
        values = iter(session.run(outputs, dict(feed)))
        for name in observed:
            peaks[name].append(float(np.max(next(values))))
            powers[name].append(np.asarray(next(values), np.float32).reshape(-1))
        if progress is not None:
            progress(done, len(feeds), "looking for outliers")
    return {
        name: Activation(
            max(peaks[name]),
            math.sqrt(float(np.median(np.concatenate(powers[name])))),
        )
        for name in observed
    }
