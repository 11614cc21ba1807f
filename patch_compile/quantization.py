"""Compiled models with their products in int8 or fp8, through ONNX Runtime's quantiser.

Weights are quantised symmetrically: zero stays zero, so that a 2:4 piece stays 2:4. Outputs
of products are quantised too, for TensorRT's sparse int8 products write int8. Products that
outliers would ruin keep their type; see `sensitivity`.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from patch_compile._require import require
from patch_compile.errors import InternalError, ModelError, RecipeError
from patch_compile.expected import read_beside
from patch_compile.io.atomic import stage_text, staged_folder
from patch_compile.io.layout import drop_stale
from patch_compile.io.onnx_model import load_model
from patch_compile.names import chosen, written
from patch_compile.page.render import page_of
from patch_compile.papers import report_text, with_versions
from patch_compile.parsing import parse_json
from patch_compile.passes.quantized import quantized_pieces
from patch_compile.passes.sites import WEIGHT
from patch_compile.quantizer import Feeds, Reader, float_weight, quantise
from patch_compile.recipe import QuantizeRecipe
from patch_compile.sensitivity import Sensitivity, sensitivities

if TYPE_CHECKING:
    from patch_compile.runtimes.onnxruntime import Session

__all__ = ["Quantized", "quantize_model"]

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class _Product:
    """A product: its weight's name for people, and the weight."""

    label: str
    weight: ir.TensorProtocol


@dataclass(frozen=True)
class Quantized:
    """What became of the products.

    Attributes:
        type: `int8` or `fp8`.
        products: that were quantised, the uncut ones included.
        kept: by name of a weight, why it keeps its type.
        sensitivity: by name of a weight, what was measured of its product; see `Sensitivity`.
        pieces: of them those that the compiler made.
        eligible: pieces that are 2:4 in their stored bytes.
        quantized_outputs: eligible pieces whose output is quantised before anything takes it;
            the others have no sparse int8 kernel.
        windows: of calibration text.
    """

    type: str
    products: int
    kept: Mapping[str, str]
    sensitivity: Mapping[str, Mapping[str, Any]]
    pieces: int
    eligible: int
    quantized_outputs: int
    windows: int


def quantize_model(
    compiled: str | Path,
    recipe: QuantizeRecipe,
    data: str | Path,
    *,
    tokenizer: str | Path | None = None,
    progress: Progress | None = None,
) -> Quantized:
    """Replaces a compiled model by its quantised form; its report.json tells of it.

    Products over constant weights get Q/DQ nodes: int8 weights one scale for each of N, fp8
    weights, inputs and outputs one scale in all. Everything else keeps its type, and so do
    the products that the recipe leaves out.

    Args:
        compiled: compiled.onnx, float32 (for int8 also float16), with report.json beside it.
            The whole model is held in memory.
        recipe: see `QuantizeRecipe`.
        data: UTF-8 text to calibrate on.
        tokenizer: tokenizer.json; by default the one beside `compiled`.
        progress: called with (windows done, windows in all, what).

    Raises:
        ModelError: the model cannot be read or run, or has no product to quantise.
        RecipeError: the recipe names no type or leaves no product, or the text is too short.
        RuntimeUnavailable: onnxruntime is missing.
    """
    compiled = Path(compiled)
    if recipe.quantize is None:
        raise RecipeError("quantize | is not given; choose int8 or fp8")
    products = _products(load_model(compiled))
    _check_types(compiled, products, recipe)
    tokens = Path(tokenizer or compiled.with_name("tokenizer.json"))
    feeds = _calibration(compiled, recipe, Path(data), tokens)
    found = sensitivities(compiled, list(products), feeds, progress)
    kept = _kept(products, found, recipe)
    wanted = {name: found[name] for name in products if name not in kept}
    if not wanted:
        raise RecipeError(
            f"quantize-ignore and quantize-error | leave none of {len(products)} products, "
            f"the first for '{next(iter(kept.values()))}'; expected one at least; mend them"
        )
    with staged_folder(compiled.parent) as stage:
        target = stage / compiled.name
        quantise(compiled, target, recipe, wanted, Reader(feeds, progress))
        for file in stage.iterdir():
            # The quantiser's files are its user's alone.
            shutil.copymode(compiled, file)
        labels = _labels(products)
        facts = _checked(load_model(target), recipe, len(feeds), labels, kept, found)
        asked = {"recipe": asdict(recipe), "data": written(Path(data))}
        noted = partial(_with_note, facts, asked)
        report = read_beside(compiled, "report.json", noted)
        stage_text(stage / "report.json", report)
        stage_text(stage / "report.html", page_of(report))
        fresh = {file.name for file in stage.iterdir()}
    drop_stale(compiled.parent, compiled.name, fresh)
    return facts


def _kept(
    products: Mapping[str, _Product], found: Mapping[str, Sensitivity], recipe: QuantizeRecipe
) -> dict[str, str]:
    """Products that keep their type, by node name, each with the reason."""
    reasons = {
        name: _ignored(name, product.label, recipe) or _ruined(found[name], recipe)
        for name, product in products.items()
    }
    return {name: reason for name, reason in reasons.items() if reason is not None}


def _ignored(name: str, label: str, recipe: QuantizeRecipe) -> str | None:
    left = chosen([name, label], (), recipe.quantize_ignore)
    return None if len(left) == 2 else "left out by quantize-ignore"


def _ruined(found: Sensitivity, recipe: QuantizeRecipe) -> str | None:
    kind = str(recipe.quantize)
    error = found.error(kind)
    if error <= recipe.quantize_error:
        return None
    side = "input" if found.input.error(kind) >= found.output.error(kind) else "output"
    return (
        f"outliers: rounding would lose {error:.0%} of a typical token of its {side}, over "
        f"the {recipe.quantize_error:.0%} of quantize-error"
    )


def _calibration(
    compiled: Path, recipe: QuantizeRecipe, data: Path, tokenizer: Path
) -> list[Feeds]:
    runtime = require("patch_compile.runtimes.onnxruntime", "cpu")
    inputs = require("patch_compile.runtimes.inputs", "cpu")
    text = require("patch_compile.runtimes.perplexity", "cpu")
    session: Session = runtime.open_session(compiled)
    windows = text.text_windows(
        data, tokenizer, recipe.calibration_tokens, recipe.calibration_window
    )
    return [inputs.token_inputs(session, window[None]) for window in windows]


def _products(model: ir.Model) -> dict[str, _Product]:
    """The products over constant float weights, by node name."""
    found = {}
    for node in model.graph:
        weight = float_weight(node) if node.op_type == "MatMul" else None
        if node.name and weight is not None:
            label = node.metadata_props.get(WEIGHT) or node.name
            found[node.name] = _Product(label, weight)
    return found


def _check_types(
    compiled: Path, products: Mapping[str, _Product], recipe: QuantizeRecipe
) -> None:
    """Refuses what ONNX Runtime cannot calibrate: it runs on the CPU, and has its gaps."""
    if not products:
        raise ModelError(
            f"model '{compiled}' | has no product over a float weight; expected one at least; "
            "was it quantised before?"
        )
    able = {"FLOAT", "FLOAT16"} if recipe.quantize == "int8" else {"FLOAT"}
    wrong = sorted({product.weight.dtype.name for product in products.values()} - able)
    if wrong:
        raise ModelError(
            f"model '{compiled}' | has {', '.join(wrong)} weights; {recipe.quantize} is "
            f"calibrated on {' or '.join(sorted(able))}; compile an fp32 model without --dtype"
        )


def _checked(
    model: ir.Model,
    recipe: QuantizeRecipe,
    windows: int,
    labels: Mapping[str, str],
    kept: Mapping[str, str],
    measured: Mapping[str, Sensitivity],
) -> Quantized:
    found = quantized_pieces(model)
    sparse = [piece for piece in found if piece.role == "sparse24"]
    broken = [piece.name for piece in sparse if not piece.holds]
    if broken:
        raise InternalError(f"piece '{broken[0]}' | was 2:4 and is not after quantisation")
    return Quantized(
        type=str(recipe.quantize),
        products=len(labels) - len(kept),
        kept={labels[name]: reason for name, reason in kept.items()},
        sensitivity={
            labels[name]: each.to_json(str(recipe.quantize)) for name, each in measured.items()
        },
        pieces=len(found),
        eligible=len(sparse),
        quantized_outputs=sum(piece.quantized_output for piece in sparse),
        windows=windows,
    )


def _labels(products: Mapping[str, _Product]) -> dict[str, str]:
    """Calls products after their weights; with the node's name those that share one."""
    shared = Counter(product.label for product in products.values())
    return {
        name: product.label if shared[product.label] == 1 else f"{product.label} ({name})"
        for name, product in products.items()
    }


def _with_note(found: Quantized, asked: Mapping[str, Any], text: str) -> str:
    used = {"onnxruntime": require("onnxruntime", "cpu").__version__}
    report = {**with_versions(parse_json(text), used), "quantized": {**asdict(found), **asked}}
    return report_text(report)
