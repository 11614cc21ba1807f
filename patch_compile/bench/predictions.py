"""Predictions that a compile left in its report, to be read against a measurement."""

from pathlib import Path

from patch_compile.errors import ModelError
from patch_compile.parsing import DAMAGE, parse_json

__all__ = ["read_predictions"]


def read_predictions(compiled: Path) -> dict[int, dict[str, float]]:
    """Returns ratios of compiled weights' latency to dense, by tokens of a run and target.

    They are of the products over masked weights alone, and of what joins them; a measurement
    is of the whole model.

    Args:
        compiled: the compiled .onnx file; none are found where no report.json lies beside it.

    Raises:
        ModelError: if the report is damaged.
    """
    path = compiled.with_name("report.json")
    if not path.is_file():
        return {}
    found: dict[int, dict[str, float]] = {}
    try:
        for entry in parse_json(path.read_text("utf-8")).get("predicted", ()):
            ratios = found.setdefault(int(entry["tokens"]), {})
            ratios[str(entry["target"])] = float(entry["ratio"])
    except DAMAGE as error:
        raise ModelError(
            f"report '{path}' | holds no predictions that can be read: {error}; compile again"
        ) from error
    return found
