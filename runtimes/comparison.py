"""How far the outputs of a compiled model are from those of its reference."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patch_compile.errors import Mismatch
from patch_compile.recipe import VerifyRecipe
from patch_compile.runtimes.onnxruntime import Session, run_session

__all__ = [
    "HALF_TOLERANCES",
    "QUANTIZED_TOLERANCES",
    "Comparison",
    "OutputComparison",
    "compare_arrays",
    "compare_outputs",
]

# Elements compared at a time: logits of long windows fill gigabytes in float64.
_CHUNK = 2**20

# (absolute, relative) for 16-bit floats: logits reach 20 to 40.
HALF_TOLERANCES = (0.5, 2e-2)
# For 8-bit products, against the model in floats: SmolLM2 differs by 0.20 at 11 % more
# perplexity, and by more than 0.5 where outliers ruin it.
QUANTIZED_TOLERANCES = (20.0, 0.25)
_TOLERANCES = {"float16": HALF_TOLERANCES, "bfloat16": HALF_TOLERANCES}
_FLOAT32_TOLERANCES = (1e-2, 1e-4)


@dataclass(frozen=True)
class OutputComparison:
    """One output of two models.

    Attributes:
        name: of the output.
        dtype: element type of the reference.
        shape: of the reference.
        max_abs: largest absolute difference; NaN if one side alone is NaN somewhere, inf if
            shapes or element types differ.
        relative: Frobenius norm of the difference over that of the reference.
        argmax_agreement: share of equal argmax along the last axis, 0 to 1; None where the
            last axis has fewer than two entries.
        atol: what `max_abs` may be.
        rtol: what `relative` may be.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    max_abs: float
    relative: float
    argmax_agreement: float | None
    atol: float
    rtol: float

    @property
    def passed(self) -> bool:
        """Both differences are within tolerance; NaN never is."""
        return self.max_abs <= self.atol and self.relative <= self.rtol

    def to_json(self) -> dict[str, Any]:
        """Returns what `json.dumps(..., allow_nan=False)` takes: NaN and inf as strings."""
        return {
            "name": self.name,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "max_abs": _number(self.max_abs),
            "relative": _number(self.relative),
            "argmax_agreement": self.argmax_agreement,
            "atol": self.atol,
            "rtol": self.rtol,
            "passed": self.passed,
        }


@dataclass(frozen=True)
class Comparison:
    """All outputs of two models, in graph order."""

    outputs: tuple[OutputComparison, ...]

    @property
    def passed(self) -> bool:
        """Every output passed."""
        return all(output.passed for output in self.outputs)

    def to_json(self) -> dict[str, Any]:
        """Returns the outcome and each output's numbers."""
        outputs = [output.to_json() for output in self.outputs]
        return {"passed": self.passed, "outputs": outputs}


def compare_outputs(
    reference: Session,
    compiled: Session,
    feeds: Mapping[str, NDArray[Any]],
    recipe: VerifyRecipe,
) -> Comparison:
    """Runs both models on the same inputs and compares every output.

    Args:
        reference: the masked dense model; see `open_reference`.
        compiled: the model under test.
        feeds: by input name, for both.
        recipe: its tolerances; those left None follow each output's element type.

    Raises:
        Mismatch: if the outputs differ in name or order.
        ModelError: if a model cannot be run.
    """
    expected = [output.name for output in reference.get_outputs()]
    found = [output.name for output in compiled.get_outputs()]
    if expected != found:
        raise Mismatch(
            f"outputs | are {', '.join(found)}; expected {', '.join(expected)}; compare "
            "models compiled from the same original"
        )
    wanted = run_session(reference, feeds, "reference model")
    got = run_session(compiled, feeds, "compiled model")
    return Comparison(tuple(compare_arrays(n, wanted[n], got[n], recipe) for n in expected))


def compare_arrays(
    name: str, reference: NDArray[Any], compiled: NDArray[Any], recipe: VerifyRecipe
) -> OutputComparison:
    """Compares two arrays; NaN or inf at the same place on both sides counts as equal.

    Args:
        name: of the output.
        reference: any shape; the norm of its finite elements is the measure of `relative`.
        compiled: expected in the same shape and element type.
        recipe: its tolerances.
    """
    atol, rtol = _tolerances(reference.dtype, recipe)
    max_abs = relative = math.inf
    agreement = None
    if reference.shape == compiled.shape and reference.dtype == compiled.dtype:
        max_abs, relative = _differences(reference, compiled)
        agreement = _agreement(reference, compiled)
    dtype, shape = str(reference.dtype), tuple(reference.shape)
    return OutputComparison(name, dtype, shape, max_abs, relative, agreement, atol, rtol)


def _tolerances(dtype: np.dtype[Any], recipe: VerifyRecipe) -> tuple[float, float]:
    if dtype.kind in "iub":
        return 0.0, 0.0
    atol, rtol = _TOLERANCES.get(str(dtype), _FLOAT32_TOLERANCES)
    return (
        recipe.atol if recipe.atol is not None else atol,
        recipe.rtol if recipe.rtol is not None else rtol,
    )


def _differences(reference: NDArray[Any], compiled: NDArray[Any]) -> tuple[float, float]:
    """Returns the largest absolute and the relative Frobenius difference."""
    largest = squared = norm = 0.0
    for wanted, got in _chunks(reference, compiled):
        difference = _difference(wanted, got)
        # np.maximum keeps a NaN, max() may lose it.
        largest = float(np.maximum(largest, difference.max()))
        squared += float(np.square(difference).sum())
        norm += float(np.square(wanted[np.isfinite(wanted)]).sum())
    if squared == 0.0:
        return largest, 0.0
    return largest, math.sqrt(squared / norm) if norm > 0.0 else math.inf


def _chunks(
    reference: NDArray[Any], compiled: NDArray[Any]
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    first, second = reference.reshape(-1), compiled.reshape(-1)
    for start in range(0, first.size, _CHUNK):
        cut = slice(start, start + _CHUNK)
        yield first[cut].astype(np.float64), second[cut].astype(np.float64)


def _difference(wanted: NDArray[np.float64], got: NDArray[np.float64]) -> NDArray[np.float64]:
    same = (wanted == got) | (np.isnan(wanted) & np.isnan(got))
    # inf - inf is discarded by `where`, which still warns of it.
    with np.errstate(invalid="ignore"):
        return np.where(same, 0.0, np.abs(wanted - got))


def _agreement(reference: NDArray[Any], compiled: NDArray[Any]) -> float | None:
    if reference.ndim == 0 or reference.shape[-1] < 2 or reference.size == 0:
        return None
    return float((reference.argmax(axis=-1) == compiled.argmax(axis=-1)).mean())


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
