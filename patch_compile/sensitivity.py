"""Which products of a model stand the few steps of a quantised activation.

One scale serves all tokens of an activation. In many language models one token, mostly the
first, has elements a thousand times as large as any other ("massive activations", Sun et al.,
arXiv 2402.17762): its scale leaves the other tokens no steps at all, and clipping it away is
worse. What says so is the spread: the largest element of the largest token over that of a
typical one. With int8, a typical token is left 127 / spread steps on either side of zero.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from patch_compile._require import require
from patch_compile.io.onnx_model import load_model, save_model
from patch_compile.passes.observed import observe

__all__ = ["Spread", "spread_of", "spreads"]

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Spread:
    """How much larger the largest token is than a typical one, and how large.

    Attributes:
        input: largest over typical token of the product's input; 1 if all are alike.
        output: the same of its output.
        input_peak: the largest magnitude of the input.
        output_peak: the same of the output.
    """

    input: float
    output: float
    input_peak: float
    output_peak: float

    @property
    def worst(self) -> float:
        """The larger of both spreads."""
        return max(self.input, self.output)

    def to_json(self) -> dict[str, float]:
        """Returns the numbers by name; a spread beyond all bounds is the largest float."""
        most = float(np.finfo(np.float64).max)
        return {name: min(value, most) for name, value in asdict(self).items()}


def spreads(
    model: Path,
    products: Sequence[str],
    feeds: Sequence[Mapping[str, NDArray[Any]]],
    progress: Progress | None = None,
) -> dict[str, Spread]:
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
    outputs = observe(graph, list(values.values()))
    peaks: dict[str, list[NDArray[Any]]] = {name: [] for name in outputs}
    with TemporaryDirectory(prefix="patch-compile-") as folder:
        save_model(graph, Path(folder) / model.name)
        session = runtime.open_session(Path(folder) / model.name)
        for done, feed in enumerate(feeds, start=1):
            found = session.run(list(outputs.values()), dict(feed))
            for name, peak in zip(outputs, found, strict=True):
                peaks[name].append(np.asarray(peak, np.float32).reshape(-1))
            if progress is not None:
                progress(done, len(feeds), "looking for outliers")
    tokens = {name: np.concatenate(several) for name, several in peaks.items()}
    return {
        name: Spread(
            spread_of(tokens[x.name or ""]),
            spread_of(tokens[y.name or ""]),
            float(tokens[x.name or ""].max()),
            float(tokens[y.name or ""].max()),
        )
        for name, (x, y) in ends.items()
    }


def _ends(model: ir.Model, products: frozenset[str]) -> dict[str, tuple[ir.Value, ir.Value]]:
    """Input and output of each product, by node name."""
    nodes = [node for node in model.graph if node.name in products]
    return {n.name or "": (x, n.outputs[0]) for n in nodes if (x := n.inputs[0]) is not None}


def spread_of(peaks: NDArray[np.float32]) -> float:
    """Returns the largest over the median; infinite where a typical token is all zeros.

    Args:
        peaks: largest magnitude of each token, float32 (tokens,).
    """
    most, typical = float(peaks.max()), float(np.median(peaks))
    if most == 0.0:
        return 1.0
    return most / typical if typical > 0.0 else float("inf")
