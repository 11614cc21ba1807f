"""The verbs as functions: what the command line calls, and what Python users call.

Optional packages load when a function needs them; see `_require`.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from patch_compile._require import require
from patch_compile.compiler import COMPILED
from patch_compile.expected import masked_tensors, read_beside
from patch_compile.io.atomic import write_text
from patch_compile.recipe import (
    BuildRecipe,
    ExportRecipe,
    LearnRecipe,
    VerifyRecipe,
)
from patch_compile.tiles.masks import Masks

if TYPE_CHECKING:
    from patch_compile.runtimes.comparison import Comparison
    from patch_compile.runtimes.engines import EngineResult
    from patch_compile.runtimes.onnxruntime import Session

__all__ = [
    "Verification",
    "build_engine",
    "export_onnx",
    "learn_masks",
    "learn_masks_for",
    "verify",
]

Progress = Callable[[int, int, str], None]


def learn_masks(
    model: str,
    data: str | Path | None = None,
    recipe: LearnRecipe | None = None,
    progress: Progress | None = None,
) -> Masks:
    """Makes masks for a PyTorch causal language model.

    Args:
        model: a Hugging Face directory, a hub id, or a GGUF file.
        data: UTF-8 text, or .jsonl with a `text` field; `magnitude` with `error` needs none.
        recipe: see `LearnRecipe`.
        progress: called with (steps done, steps in all, what).

    Returns:
        Masks whose sparsity is the recipe's to within one tile.

    Raises:
        ModelError: the model cannot be loaded or has nothing to prune.
        RecipeError: the recipe contradicts itself, or the text is too short.
        RuntimeUnavailable: torch or transformers is missing.
    """
    return learn_masks_for(model, data, [recipe or LearnRecipe()], progress)[0]


def learn_masks_for(
    model: str,
    data: str | Path | None,
    recipes: Sequence[LearnRecipe],
    progress: Progress | None = None,
) -> list[Masks]:
    """Makes several sets of masks from one calibration; see `learn_masks`.

    Args:
        model: a Hugging Face directory, a hub id, or a GGUF file.
        data: UTF-8 text, or .jsonl with a `text` field.
        recipes: they may differ in `tile` and `sparsity`.
        progress: called with (steps done, steps in all, what).

    Returns:
        One set of masks a recipe, in order.
    """
    require("torch", "learn")
    loader = require("patch_compile.learn.model", "learn")
    oneshot = require("patch_compile.learn.oneshot", "learn")
    text = None if data is None else Path(data)
    loaded = loader.load_model(model)
    learned: list[Masks] = oneshot.learn_masks_for(loaded, text, recipes, progress)
    return learned


def export_onnx(
    model: str,
    output: str | Path,
    recipe: ExportRecipe | None = None,
    masks: Masks | None = None,
    progress: Progress | None = None,
) -> Path:
    """Exports the dense model to ONNX, with every weight's parameter name on its MatMul.

    Args:
        model: a Hugging Face directory, a hub id, or a GGUF file.
        output: the .onnx file; data, tokenizer and configuration go beside it.
        recipe: see `ExportRecipe`.
        masks: checked against the model before the slow part; they are not applied.
        progress: called with (steps done, steps in all, what).

    Raises:
        ModelError: the model cannot be loaded or exported.
        MaskError: a mask belongs to another model.
        RuntimeUnavailable: torch or transformers is missing.
    """
    require("torch", "learn")
    loader = require("patch_compile.learn.model", "learn")
    exporter = require("patch_compile.learn.export", "learn")
    recipe = recipe or ExportRecipe()
    loaded = loader.load_model(model, recipe.dtype)
    path: Path = exporter.export_onnx(loaded, Path(output), recipe, masks, progress)
    return path


def build_engine(
    model: str | Path,
    engine: str | Path,
    recipe: BuildRecipe | None = None,
    progress: Progress | None = None,
) -> "EngineResult":
    """Builds a serialized engine in a process of its own; see `BuildRecipe`.

    Beside a compiled model its report.json gets an entry: sparse kernels requested or not,
    the eligible pieces, and `chosen: unknown`, for no build without a GPU tells.

    Args:
        model: an .onnx file, compiled or not; external data beside it.
        engine: the file to write; a .json and a .log of its name go beside it.
        recipe: see `BuildRecipe`.
        progress: called with (steps done, steps in all, what).

    Raises:
        ModelError: the backend refuses the model, in its own words.
        RecipeError: an architecture the backend does not know.
        RuntimeUnavailable: the backend is missing, crashed or ran out of time.
    """
    engines = require("patch_compile.runtimes.engines", "rtx")
    recipe = recipe or BuildRecipe(engine="tensorrt_rtx")
    result: EngineResult = engines.build_engine(Path(model), Path(engine), recipe, progress)
    _note_engine(Path(model), result)
    return result


def _note_engine(model: Path, result: "EngineResult") -> None:
    """Puts the engine into the report beside a compiled model, in place of its namesake."""
    path = model.parent / "report.json"
    if model.name != COMPILED or not path.exists():
        return
    write_text(path, read_beside(model, path.name, partial(_with_engine, result)))


def _with_engine(result: "EngineResult", text: str) -> str:
    report = json.loads(text)
    others = [e for e in report["engines"] if e["engine"] != result.path.name]
    entry = {
        "engine": result.path.name,
        "sm": list(result.sm),
        "version": result.version,
        "requested": result.requested_sparse,
        "eligible": report["totals"]["eligible"],
        "chosen": result.chosen,
    }
    report["engines"] = sorted([*others, entry], key=lambda engine: str(engine["engine"]))
    return json.dumps(report, indent=1) + "\n"


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    Attributes:
        comparison: compiled against masked, output by output.
        perplexity: of `dense`, `masked` and `compiled` on the text, where one was given.
        tokens: predictions that the perplexities are the mean of.
        unapplied: masks that neither model applies, each with the reason.
    """

    comparison: "Comparison"
    perplexity: dict[str, float]
    tokens: int
    unapplied: dict[str, str]

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
    rewrite's code makes it. Which mask belongs to which weight it takes from the binding.

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
        RuntimeUnavailable: onnxruntime is missing.
    """
    runtime = require("patch_compile.runtimes.onnxruntime", "cpu")
    reference = require("patch_compile.runtimes.reference", "cpu")
    require("onnxruntime", "cpu")
    recipe = recipe or VerifyRecipe()
    model, compiled = Path(model), Path(compiled)
    tensors, unapplied = masked_tensors(model, compiled, masks)
    compiled_session = runtime.open_session(compiled)
    windows = None
    if data is not None:
        windows = _windows(
            Path(data), Path(tokenizer or model.parent / "tokenizer.json"), recipe
        )
    masked_session = reference.open_reference(model, tensors, progress=progress)
    comparison = _compare(masked_session, compiled_session, windows, recipe)
    if windows is None:
        return Verification(comparison, {}, 0, unapplied)
    scores = {
        "masked": _perplexity(masked_session, windows, "masked", progress),
        "compiled": _perplexity(compiled_session, windows, "compiled", progress),
    }
    # Sessions hold whole models: the dense one opens when the masked one has gone.
    del masked_session, tensors
    dense = _perplexity(runtime.open_session(model), windows, "dense", progress)
    predictions = windows.shape[0] * (windows.shape[1] - 1)
    scores = {"dense": dense, **scores}
    return Verification(comparison, scores, predictions, unapplied)


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


def _perplexity(
    session: "Session", windows: NDArray[np.int64], what: str, progress: Progress | None
) -> float:
    perplexity = require("patch_compile.runtimes.perplexity", "cpu")

    def step(done: int, total: int, _: str) -> None:
        if progress is not None:
            progress(done, total, f"perplexity, {what}")

    score: float = perplexity.perplexity(session, windows, step)
    return score
