"""Compiled models with their products in int8 or fp8, through ONNX Runtime's quantiser.

Weights are quantised symmetrically: zero stays zero, so that a 2:4 piece stays 2:4. Outputs
of products are quantised too, for TensorRT's sparse int8 products write int8.
"""

import io
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
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
from patch_compile.page.render import page_of
from patch_compile.passes.quantized import quantized_pieces
from patch_compile.recipe import QuantizeRecipe

if TYPE_CHECKING:
    from patch_compile.runtimes.onnxruntime import Session

__all__ = ["Quantized", "quantize_model"]

Progress = Callable[[int, int, str], None]
Feeds = dict[str, Any]


@dataclass(frozen=True)
class Quantized:
    """What became of the products.

    Attributes:
        type: `int8` or `fp8`.
        products: that were quantised, the uncut ones included.
        pieces: of them those that the compiler made.
        eligible: pieces that are 2:4 in their stored bytes.
        quantized_outputs: eligible pieces whose output is quantised before anything takes it;
            the others have no sparse int8 kernel.
        windows: of calibration text.
    """

    type: str
    products: int
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

    Products over constant weights get Q/DQ nodes: weights one scale for each of N, inputs and
    outputs one scale in all. Everything else keeps its type.

    Args:
        compiled: compiled.onnx, float32 (for int8 also float16), with report.json beside it.
            The whole model is held in memory.
        recipe: see `QuantizeRecipe`.
        data: UTF-8 text to calibrate on.
        tokenizer: tokenizer.json; by default the one beside `compiled`.
        progress: called with (windows done, windows in all, what).

    Raises:
        ModelError: the model cannot be read or run, or has no product to quantise.
        RecipeError: the recipe names no type, or the text is too short.
        RuntimeUnavailable: onnxruntime is missing.
    """
    compiled = Path(compiled)
    if recipe.quantize is None:
        raise RecipeError("quantize | is not given; choose int8 or fp8")
    products = _products(load_model(compiled))
    _check_types(compiled, products, recipe)
    names = list(products)
    tokens = Path(tokenizer or compiled.with_name("tokenizer.json"))
    feeds = _calibration(compiled, recipe, Path(data), tokens)
    with staged_folder(compiled.parent) as stage:
        target = stage / compiled.name
        _quantise(compiled, target, recipe, names, _Reader(feeds, progress))
        for file in stage.iterdir():
            # The quantiser's files are its user's alone.
            shutil.copymode(compiled, file)
        found = _checked(load_model(target), recipe, len(feeds), len(names))
        noted = partial(_with_note, found)
        report = read_beside(compiled, "report.json", noted)
        stage_text(stage / "report.json", report)
        stage_text(stage / "report.html", page_of(report))
        fresh = {file.name for file in stage.iterdir()}
    drop_stale(compiled.parent, compiled.name, fresh)
    return found


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


def _products(model: ir.Model) -> dict[str, ir.DataType]:
    """Names of the products over constant float weights, with the weights' types."""
    found = {}
    for node in model.graph:
        weight = _weight(node) if node.op_type == "MatMul" else None
        if node.name and weight is not None:
            found[node.name] = weight.dtype
    return found


def _weight(node: ir.Node) -> ir.TensorProtocol | None:
    value = node.inputs[1]
    tensor = None if value is None else value.const_value
    if tensor is None or not tensor.dtype.is_floating_point() or len(tensor.shape) != 2:
        return None
    return tensor


def _check_types(
    compiled: Path, products: Mapping[str, ir.DataType], recipe: QuantizeRecipe
) -> None:
    """Refuses what ONNX Runtime cannot calibrate: it runs on the CPU, and has its gaps."""
    if not products:
        raise ModelError(
            f"model '{compiled}' | has no product over a float weight; expected one at least; "
            "was it quantised before?"
        )
    able = {"FLOAT", "FLOAT16"} if recipe.quantize == "int8" else {"FLOAT"}
    wrong = sorted({kind.name for kind in products.values()} - able)
    if wrong:
        raise ModelError(
            f"model '{compiled}' | has {', '.join(wrong)} weights; {recipe.quantize} is "
            f"calibrated on {' or '.join(sorted(able))}; compile an fp32 model without --dtype"
        )


class _Reader:
    """Hands out one window after the other, as the quantiser asks for them."""

    def __init__(self, feeds: list[Feeds], progress: Progress | None) -> None:
        self._feeds, self._progress, self._done = feeds, progress, 0

    def get_next(self) -> Feeds | None:
        """Returns the next window's inputs; None after the last."""
        if self._progress is not None:
            self._progress(self._done, len(self._feeds), "calibrating")
        self._done += 1
        return self._feeds[self._done - 1] if self._done <= len(self._feeds) else None

    def __iter__(self) -> Iterator[Feeds]:
        return iter(self.get_next, None)

    def __len__(self) -> int:
        return len(self._feeds)


def _quantise(
    model: Path, target: Path, recipe: QuantizeRecipe, names: list[str], reader: _Reader
) -> None:
    runtime = require("patch_compile.runtimes.onnxruntime", "cpu")
    tools = require("onnxruntime.quantization", "cpu")
    kind = tools.QuantType.QInt8
    method = tools.CalibrationMethod.MinMax
    if recipe.quantize == "fp8":
        kind = tools.QuantType.QFLOAT8E4M3FN
        # The only one that it has for floats.
        method = tools.CalibrationMethod.Distribution
    with runtime.explained(f"model '{model}'"), _hushed():
        tools.quantize_static(
            model,
            target,
            reader,
            op_types_to_quantize=["MatMul"],
            nodes_to_quantize=names,
            per_channel=recipe.quantize == "int8",
            activation_type=kind,
            weight_type=kind,
            calibrate_method=method,
            use_external_data_format=True,
            extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},
        )


@contextmanager
def _hushed() -> Iterator[None]:
    """Keeps away what the quantiser prints, and its advice on image models in the root log."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(level)


def _checked(
    model: ir.Model, recipe: QuantizeRecipe, windows: int, products: int
) -> Quantized:
    found = quantized_pieces(model)
    sparse = [piece for piece in found if piece.role == "sparse24"]
    broken = [piece.name for piece in sparse if not piece.holds]
    if broken:
        raise InternalError(f"piece '{broken[0]}' | was 2:4 and is not after quantisation")
    return Quantized(
        type=str(recipe.quantize),
        products=products,
        pieces=len(found),
        eligible=len(sparse),
        quantized_outputs=sum(piece.quantized_output for piece in sparse),
        windows=windows,
    )


def _with_note(found: Quantized, text: str) -> str:
    return json.dumps({**json.loads(text), "quantized": asdict(found)}, indent=1) + "\n"
