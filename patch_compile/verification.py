"""Is the compiled model the masked model? ONNX Runtime is asked."""

import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from patch_compile._require import require
from patch_compile.errors import RecipeError
from patch_compile.expected import masked_tensors, read_beside, recipe_beside
from patch_compile.names import written
from patch_compile.papers import add_to_report, with_versions
from patch_compile.parsing import parse_json
from patch_compile.recipe import VerifyRecipe
from patch_compile.tiles.masks import Masks

if TYPE_CHECKING:
    from patch_compile.runtimes.comparison import Comparison
    from patch_compile.runtimes.onnxruntime import Session

__all__ = ["Verification", "verify"]

_log = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Attributes:
        comparison: compiled against masked, output by output.
        perplexity: of `dense`, `masked` and `compiled` on the text, where one was given.
        tokens: predictions that the perplexities are the mean of.
        unapplied: masks that neither model applies, each with the reason.
        compared: what was held against what, in words.
    """

    comparison: "Comparison"
    perplexity: dict[str, float]
    tokens: int
    unapplied: dict[str, str]
    compared: str = "compiled against masked"

    @property
    def passed(self) -> bool:
        """Every output is within tolerance."""
        return self.comparison.passed

    def to_json(self) -> dict[str, Any]:
        """Returns what `json.dumps(..., allow_nan=False)` takes: NaN and inf as strings."""
        scores = {
            name: score if math.isfinite(score) else str(score)
            for name, score in self.perplexity.items()
        }
        return {
            "compared": self.compared,
            **self.comparison.to_json(),
            "perplexity": scores,
            "tokens": self.tokens,
            "unapplied": self.unapplied,
        }


def verify(
    model: str | Path,
    compiled: str | Path,
    masks: str | Path | Masks,
    recipe: VerifyRecipe | None = None,
    *,
    data: str | Path | None = None,
    tokenizer: str | Path | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Compares a compiled model with the masked dense one on onnxruntime's CPU provider.

    The reference is the original model with its weights masked by numpy; none of the
    rewrite's code makes it. Which mask belongs to which weight it takes from the binding. The
    report beside the compiled model gets what is found.

    Args:
        model: the original, dense .onnx file.
        compiled: the compiled .onnx file; its report.json and plan.json lie beside it.
        masks: what it was compiled with.
        recipe: tolerances and the amount of text.
        data: UTF-8 text for perplexities; without it, inputs are random.
        tokenizer: `tokenizer.json`; by default the one beside `model`.
        progress: called with (steps done, steps in all, what).

    Raises:
        ModelError: a model cannot be read or run.
        MaskError: the masks do not belong to the model.
        RecipeError: there is a tokenizer and no text, or the text is too short.
        RuntimeUnavailable: onnxruntime is missing.
    """
    recipe = recipe or VerifyRecipe()
    if tokenizer is not None and data is None:
        raise RecipeError("tokenizer | has no text to turn into tokens; give --data as well")
    model, compiled = Path(model), Path(compiled)
    text = None if data is None else Path(data)
    words = Path(tokenizer or model.parent / "tokenizer.json")
    found = _found(model, compiled, masks, recipe, text, words, progress)
    facts = {
        **found.to_json(),
        "data": None if text is None else written(text),
        "recipe": asdict(recipe),
    }
    used = {"onnxruntime": require("onnxruntime", "cpu").__version__}
    add_to_report(
        compiled, lambda report: {**with_versions(report, used), "verification": facts}
    )
    return found


def _found(
    model: Path,
    compiled: Path,
    masks: str | Path | Masks,
    recipe: VerifyRecipe,
    text: Path | None,
    tokenizer: Path,
    progress: Progress | None,
) -> Verification:
    runtime = require("patch_compile.runtimes.onnxruntime", "cpu")
    reference = require("patch_compile.runtimes.reference", "cpu")
    require("onnxruntime", "cpu")
    change = _change(compiled)
    recipe = _tolerant(recipe, change)
    tensors, unapplied = masked_tensors(model, compiled, masks)
    compiled_session = runtime.open_session(compiled)
    windows = None if text is None else _windows(text, tokenizer, recipe)
    masked_session = reference.open_reference(model, tensors, progress=progress)
    comparison = _compare(masked_session, compiled_session, windows, recipe)
    if windows is None or not _predicts(masked_session):
        return Verification(comparison, {}, 0, unapplied, change.compared)
    scores = {
        "masked": _perplexity(masked_session, windows, "masked", progress),
        "compiled": _perplexity(compiled_session, windows, "compiled", progress),
    }
    # Sessions hold whole models: the dense one opens when the masked one has gone.
    del masked_session, tensors
    dense = _perplexity(runtime.open_session(model), windows, "dense", progress)
    predictions = windows.shape[0] * (windows.shape[1] - 1)
    scores = {"dense": dense, **scores}
    return Verification(comparison, scores, predictions, unapplied, change.compared)


@dataclass(frozen=True)
class _Change:
    """What the compiled model's report says was done to its types: `fp16`, `int8`, nothing."""

    cast: str | None
    quantized: str | None

    @property
    def compared(self) -> str:
        if self.quantized is not None:
            return f"compiled, quantised to {self.quantized}, against masked, not quantised"
        if self.cast is not None:
            return f"compiled, cast to {self.cast}, against masked, not cast"
        return "compiled against masked"


def _change(compiled: Path) -> _Change:
    def read(text: str) -> str | None:
        kind = parse_json(text).get("quantized", {}).get("type")
        return None if kind is None else str(kind)

    return _Change(recipe_beside(compiled).dtype, read_beside(compiled, "report.json", read))


def _tolerant(recipe: VerifyRecipe, change: _Change) -> VerifyRecipe:
    """Where products changed their type, outputs keep theirs and have the new rounding."""
    comparison = require("patch_compile.runtimes.comparison", "cpu")
    if change.quantized is not None:
        atol, rtol = comparison.QUANTIZED_TOLERANCES
    elif change.cast is not None:
        atol, rtol = comparison.HALF_TOLERANCES
    else:
        return recipe
    return replace(
        recipe,
        atol=atol if recipe.atol is None else recipe.atol,
        rtol=rtol if recipe.rtol is None else recipe.rtol,
    )


def _windows(data: Path, tokenizer: Path, recipe: VerifyRecipe) -> NDArray[np.int64]:
    perplexity = require("patch_compile.runtimes.perplexity", "cpu")
    found: NDArray[np.int64] = perplexity.text_windows(
        data, tokenizer, recipe.tokens, recipe.window
    )
    return found


def _compare(
    masked: "Session",
    compiled: "Session",
    windows: NDArray[np.int64] | None,
    recipe: VerifyRecipe,
) -> "Comparison":
    inputs = require("patch_compile.runtimes.inputs", "cpu")
    comparison = require("patch_compile.runtimes.comparison", "cpu")
    if windows is None:
        feeds = inputs.random_inputs(masked, seed=recipe.seed)
    else:
        feeds = inputs.token_inputs(masked, windows[:1])
    found: Comparison = comparison.compare_outputs(masked, compiled, feeds, recipe)
    return found


def _predicts(session: "Session") -> bool:
    """Whether a model predicts the next token: of others perplexity is not defined."""
    perplexity = require("patch_compile.runtimes.perplexity", "cpu")
    score, length = perplexity.session_scorer(session), perplexity.session_length(session)
    causal = not perplexity.moved_by_later(score, length)
    if not causal:
        _log.warning(
            "perplexity | is not told: a later token moves the model's outputs, as an "
            "encoder's; they are compared on the text"
        )
    return causal


def _perplexity(
    session: "Session", windows: NDArray[np.int64], what: str, progress: Progress | None
) -> float:
    perplexity = require("patch_compile.runtimes.perplexity", "cpu")

    def step(done: int, total: int, _: str) -> None:
        if progress is not None:
            progress(done, total, f"perplexity, {what}")

    score: float = perplexity.perplexity(session, windows, step)
    return score
