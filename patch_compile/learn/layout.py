"""How every weight is cut into tiles, and which tiles of a model go together.

A tie makes weights that share an inner axis share one choice for each block of it: the blocks
are rows of the weights that make the axis and columns of the one that sums over it, so a block
that is dense or 2:4 is so from the first product to the last.

N: out features. K: in features. R, C: tiles along N and K.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from patch_compile.errors import ModelError, RecipeError
from patch_compile.learn.bound import Bound, bound_weights, head_width
from patch_compile.learn.linears import Linear
from patch_compile.recipe import LearnRecipe
from patch_compile.tiles.geometry import Geometry, TileGrid
from patch_compile.tiles.promise import Promise

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Layout", "layout", "untied"]


@dataclass(frozen=True, eq=False)
class Layout:
    """The cut of one weight.

    Attributes:
        geometry: its name, for people: `band:64`, or a tie's, `mlp:64` or `heads`.
        grid: the tiles.
        ties: int32 (R, C) or None: tiles of one number, in whatever weight of the model, are
            dense or 2:4 together. The numbers of a weight are consecutive, and every weight
            that it is tied to has the same.
    """

    geometry: str
    grid: TileGrid
    ties: NDArray[np.int32] | None = None


def layout(
    model: "PreTrainedModel", linears: Mapping[str, Linear], recipe: LearnRecipe
) -> dict[str, Layout]:
    """Cuts every weight as the recipe asks: by its ties, else by its `tile`.

    Args:
        model: the linears' own.
        linears: to be pruned, by the names of their weights.
        recipe: `tile`, `tie` and `tie_block` are read, and `budget` checked.

    Returns:
        The layouts by the names of the weights, in the order of `linears`.

    Raises:
        RecipeError: if only a part of the weights that a tie binds is to be pruned, or a cut
            would part a 2:4 group, or no choice of tiles could keep a budget of time.
        ModelError: if the model has nothing that a tie knows, or its heads do not divide it.
    """
    made = untied(linears, recipe.tile)
    count = 0
    for tie in recipe.tie:
        for bound in _chosen(bound_weights(model, tie), linears, tie):
            if tie == "mlp":
                tied = _tied_mlp(bound, linears, recipe.tie_block, count)
            else:
                tied = _tied_heads(bound, linears, head_width(model, bound), count)
            made |= tied
            count += tied[bound.columns].grid.tiles[1]
    if recipe.promise is not None:
        shapes = [linear.shape for linear in linears.values()]
        Promise.of(recipe.promise, shapes).check(cut.grid for cut in made.values())
    return made


def untied(linears: Mapping[str, Linear], tile: str) -> dict[str, Layout]:
    """Cuts every weight by one geometry, each tile on its own."""
    geometry = Geometry.parse(tile)
    return {
        name: Layout(str(geometry), geometry.grid(linear.shape))
        for name, linear in linears.items()
    }


def _chosen(bound: list[Bound], linears: Mapping[str, Linear], tie: str) -> list[Bound]:
    """Takes what is to be pruned; a part of a tie alone cannot be."""
    chosen = [each for each in bound if not linears.keys().isdisjoint(each.names)]
    if not chosen:
        raise RecipeError(
            f"tie | is '{tie}', and none of the weights it binds is to be pruned, e.g. "
            f"'{bound[0].columns}'; widen --include, narrow --ignore or leave the tie out"
        )
    for each in chosen:
        missing = [name for name in each.names if name not in linears]
        if missing:
            raise RecipeError(
                f"weight '{missing[0]}' | is not to be pruned, and --tie {tie} binds it to "
                f"others of '{each.module}' that are; include or ignore all "
                f"{len(each.names)}, or leave the tie out"
            )
    return chosen


def _tied_mlp(
    bound: Bound, linears: Mapping[str, Linear], block: int, start: int
) -> dict[str, Layout]:
    if block < 4 or block % 4:
        raise RecipeError(
            f"tie-block | is {block}; expected a multiple of 4, or a 2:4 group of "
            f"'{bound.columns}' would lie in two blocks"
        )
    blocks = -(-linears[bound.columns].shape[1] // block)
    steps = dict.fromkeys(bound.names, block)
    return _tied(bound, linears, f"mlp:{block}", steps, range(start, start + blocks))


def _tied_heads(
    bound: Bound, linears: Mapping[str, Linear], head: int, start: int
) -> dict[str, Layout]:
    last = bound.rows[-1]
    groups, rest = divmod(linears[last].shape[0], bound.fused * head)
    if rest:
        raise ModelError(
            f"weight '{last}' | has {linears[last].shape[0]} out features; expected whole "
            f"heads of {bound.fused} x {head}; leave the tie out"
        )
    inner = linears[bound.columns].shape[1]
    if (inner // groups) % 4:
        raise RecipeError(
            f"weight '{bound.columns}' | has {inner // groups} in features for each of "
            f"{groups} key-value heads; expected a multiple of 4, or a 2:4 group would lie in "
            "two tiles; leave the tie out"
        )
    steps = {name: linears[name].shape[0] // (bound.fused * groups) for name in bound.rows}
    steps[bound.columns] = inner // groups
    return _tied(bound, linears, "heads", steps, range(start, start + groups))


def _tied(
    bound: Bound,
    linears: Mapping[str, Linear],
    geometry: str,
    steps: Mapping[str, int],
    numbers: range,
) -> dict[str, Layout]:
    """Cuts each weight along the inner axis; its blocks get the numbers, in order."""
    made = {}
    for name in bound.names:
        shape, step, summed = linears[name].shape, steps[name], name == bound.columns
        grid = (Geometry(None, step) if summed else Geometry(step, None)).grid(shape)
        ties = np.tile(np.array(numbers, np.int32), 1 if summed else bound.fused)
        if grid.tiles[0] * grid.tiles[1] != len(ties):
            raise ModelError(
                f"weight '{name}' | of shape {shape} has no {len(ties)} blocks of {step}, "
                f"to go with those of '{bound.columns}'; leave the tie out"
            )
        made[name] = Layout(geometry, grid, ties.reshape(grid.tiles))
    return made
