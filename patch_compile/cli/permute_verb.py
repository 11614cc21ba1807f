"""The verb `permute`: parses, calls the API, prints."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from patch_compile import api
from patch_compile.cli.console import out, progress_bar, say
from patch_compile.cli.outputs import check_folder
from patch_compile.recipe import PermuteRecipe

__all__ = ["permute"]

_PERMUTE = PermuteRecipe()

_CALLED = {"residual": "residual stream", "mlp": "MLPs", "heads": "attentions"}


def permute(
    model: str,
    /,
    *,
    data: tuple[str, ...] = (),
    output: Annotated[Path, Parameter(alias="-o")],
    recipe: Annotated[PermuteRecipe, Parameter(name="*")] = _PERMUTE,
) -> None:
    """Reorder MODEL's channels so that 2:4 loses less; what it computes stays the same.

    2:4 keeps two of every four neighbours, so it matters which channels are neighbours. Those
    of the residual stream, of each MLP and of the values of each head can change places
    without any cost when the model runs: rows of some weights move, and columns of others.
    Learn masks for the new checkpoint, and export that.

    Args:
        model: a causal or masked language model: a Hugging Face directory, a hub id, or a
            GGUF file.
        data: text that tells what each weight is worth, as `learn` takes it.
        output: folder for the new checkpoint, in the element type of the old one if all
            weights fit it, else in float32; in it permutation.json says where each channel
            was.
    """
    check_folder(output)
    with progress_bar() as progress:
        permuted = api.permute_channels(model, data, output, recipe, progress)
    for kind in recipe.axes:
        axes = [axis for axis in permuted.axes if axis.kind == kind]
        before, after = (sum(getattr(a, at) for a in axes) for at in ("before", "after"))
        saved = 1 - after / before if before else 0.0
        out.print(
            f"{_CALLED[kind]}: {sum(axis.order.size for axis in axes)} channels, what 2:4 "
            f"costs in the weights that read them falls by {saved:.1%}"
        )
    out.print(
        f"largest difference of a logit {permuted.difference:.2g}, "
        f"largest logit {permuted.largest:.3g}"
    )
    say(f"wrote {output}")
