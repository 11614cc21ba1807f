"""The step of the main job that quantises what was compiled."""

from pathlib import Path

from patch_compile._require import require
from patch_compile.cli.console import out, progress_bar, say
from patch_compile.errors import RecipeError
from patch_compile.quantization import quantize_model
from patch_compile.recipe import QuantizeRecipe

__all__ = ["check_calibration", "quantize_step"]


def check_calibration(recipe: QuantizeRecipe, data: Path | None, tokenizer: Path) -> None:
    """Refuses a text or a tokenizer that cannot be used, before the slow part.

    Raises:
        RecipeError: if there is no text, or it is not UTF-8 or too short, or there is one
            for nothing.
        ModelError: if the tokenizer is missing or damaged.
    """
    if recipe.quantize is None and data is not None:
        raise RecipeError("data | is text to calibrate on; give --quantize as well")
    if recipe.quantize is None:
        return
    if data is None:
        raise RecipeError(
            f"quantize | is {recipe.quantize}, which needs text to calibrate on; "
            "give it by --data"
        )
    perplexity = require("patch_compile.runtimes.perplexity", "cpu")
    tokens, window = recipe.calibration_tokens, recipe.calibration_window
    perplexity.text_windows(data, tokenizer, tokens, window)


def quantize_step(
    path: Path, recipe: QuantizeRecipe, data: Path, tokenizer: Path, *, show: bool
) -> None:
    """Quantises a compiled model in its place and says what became of its products."""
    with progress_bar() as progress:
        found = quantize_model(path, recipe, data, tokenizer=tokenizer, progress=progress)
    if show:
        out.print(
            f"{found.type}: {found.products} products, {found.pieces} of them pieces; 2:4 in "
            f"their stored bytes {found.eligible}, of those with a quantised output "
            f"{found.quantized_outputs}"
        )
        for name, reason in found.kept.items():
            out.print(f"kept in its type: {name} ({reason})", markup=False)
    say(f"quantised {path}")
