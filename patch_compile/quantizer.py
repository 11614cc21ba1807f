"""ONNX Runtime's quantiser, asked for what TensorRT takes: a scale an activation."""

import io
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from patch_compile._require import require
from patch_compile.io.onnx_model import external_files, load_model
from patch_compile.recipe import QuantizeRecipe
from patch_compile.sensitivity import Sensitivity

__all__ = ["Feeds", "Reader", "float_weight", "quantise"]

Progress = Callable[[int, int, str], None]
Feeds = dict[str, Any]

# The largest number of float8 e4m3.
_FP8_MOST = 448.0
# A scale for what is zero throughout.
_TINY = 1e-12


def float_weight(node: ir.Node) -> ir.TensorProtocol | None:
    """Returns the constant float matrix that a MatMul multiplies by; None for any other."""
    value = node.inputs[1]
    tensor = None if value is None else value.const_value
    if tensor is None or not tensor.dtype.is_floating_point() or len(tensor.shape) != 2:
        return None
    return tensor


class Reader:
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


def quantise(
    model: Path,
    target: Path,
    recipe: QuantizeRecipe,
    wanted: Mapping[str, Sensitivity],
    reader: Reader,
) -> None:
    """Writes a model with Q/DQ nodes around the products that are named.

    Args:
        model: the .onnx file.
        target: the .onnx file to write, its data beside it.
        recipe: type and calibration.
        wanted: by node name, what was measured of the product.
        reader: of the calibration's windows.

    Raises:
        ModelError: if ONNX Runtime cannot run or quantise the model.
        RuntimeUnavailable: onnxruntime is missing.
    """
    runtime = require("patch_compile.runtimes.onnxruntime", "cpu")
    tools = require("onnxruntime.quantization", "cpu")
    int8 = recipe.quantize == "int8"
    kind = tools.QuantType.QInt8 if int8 else tools.QuantType.QFLOAT8E4M3FN
    # The one method that it takes for floats; its ranges, which clip, are overridden.
    method = recipe.calibration.capitalize().replace("Minmax", "MinMax")
    options: dict[str, Any] = {
        "ActivationSymmetric": True,
        "WeightSymmetric": True,
        "CalibPercentile": recipe.calibration_percentile,
    }
    if not int8:
        method = "Distribution"
        options["TensorQuantOverrides"] = _fp8_scales(load_model(model), wanted)
    with (
        TemporaryDirectory(dir=target.parent) as own,
        runtime.explained(f"model '{model}'"),
        _hushed(),
    ):
        tools.quantize_static(
            # It writes beside its input, over what may lie there.
            _copied(model, Path(own)),
            target,
            reader,
            op_types_to_quantize=["MatMul"],
            nodes_to_quantize=list(wanted),
            per_channel=int8,
            activation_type=kind,
            weight_type=kind,
            calibrate_method=tools.CalibrationMethod[method],
            use_external_data_format=True,
            extra_options=options,
        )


def _copied(model: Path, folder: Path) -> Path:
    """Copies a model and its data files into a folder, and returns the model's path there."""
    for file in (model, *external_files(load_model(model))):
        place = folder / file.relative_to(model.parent)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)
    return folder / model.name


def _fp8_scales(
    model: ir.Model, wanted: Mapping[str, Sensitivity]
) -> dict[str, list[dict[str, Any]]]:
    """Scales that clip nothing: the largest magnitude becomes fp8's largest number.

    The quantiser's own map the standard deviation, and clip what is several of it large.
    """
    found = {}
    for node in model.graph:
        ends = wanted.get(node.name or "")
        weight = None if ends is None else float_weight(node)
        if ends is None or weight is None:
            continue
        values = (*node.inputs[:2], node.outputs[0])
        peaks = (ends.input.peak, _peak(weight), ends.output.peak)
        for value, peak in zip(values, peaks, strict=True):
            scale = np.array(max(peak, _TINY) / _FP8_MOST, np.float32)
            entry = {"scale": scale, "zero_point": np.array(0, ml_dtypes.float8_e4m3fn)}
            found["" if value is None else value.name or ""] = [entry]
    return found


def _peak(weight: ir.TensorProtocol) -> float:
    return float(np.abs(np.asarray(weight.numpy())).max())


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
