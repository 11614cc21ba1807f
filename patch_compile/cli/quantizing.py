"""The step of the main job that quantises what was compiled."""

from pathlib import Path

from patch_compile.cli.console import out, progress_bar, say
from patch_compile.quantization import quantize_model
from patch_compile.recipe import QuantizeRecipe

__all__ = ["quantize_step"]


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
