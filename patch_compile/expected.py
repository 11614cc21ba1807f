"""What a compiled model must compute, read off the files beside it.

N: out features. K: in features.
"""

from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from patch_compile._require import require
from patch_compile.errors import MaskError, ModelError
from patch_compile.io.onnx_model import load_model, metadata_of
from patch_compile.masking import bind_masks, stamp_of
from patch_compile.parsing import DAMAGE, parse_json
from patch_compile.passes.sites import STAMP
from patch_compile.recipe import CompileRecipe
from patch_compile.tiles.masks import Masks
from patch_compile.tiles.plan import Plan, WeightPlan

if TYPE_CHECKING:
    from patch_compile.passes.binding import Binding
    from patch_compile.runtimes.reference import MaskedTensor

__all__ = ["masked_tensors", "read_beside", "recipe_beside"]

_Read = TypeVar("_Read")


def masked_tensors(
    model: Path, compiled: Path, masks: str | Path | Masks
) -> "tuple[list[MaskedTensor], dict[str, str]]":
    """What a compiled model should compute: the masks, and for `restore` the plan.

    Args:
        model: the original, dense .onnx file.
        compiled: the compiled one, with report.json and plan.json beside it.
        masks: what it was compiled with.

    Returns:
        The weights with their keep masks; for masks that were not applied the reason.

    Raises:
        ModelError: if a model or a file beside it cannot be read.
        MaskError: if the masks do not belong to the model, or the compiled one tells that it
            took others.
    """
    reference = require("patch_compile.runtimes.reference", "cpu")
    recipe = recipe_beside(compiled)
    bindings, left_alone, taken = bind_masks(load_model(model), masks, recipe)
    # A cast may have made zeros of small weights, which `infer` took for masks.
    if recipe.dtype is None or str(masks) != "infer":
        _check_stamp(compiled, masks, stamp_of(taken, recipe))
    plans = _plans_beside(compiled) if recipe.restore else {}
    tensors = [
        reference.MaskedTensor(
            tensor=binding.site.name,
            keep=_keep(binding, plans.get(binding.site.name)),
            transposed=binding.site.weight.transposed,
        )
        for binding in bindings
    ]
    return tensors, {n: left_alone[n] for n in taken.weights if n in left_alone}


def _check_stamp(compiled: Path, masks: str | Path | Masks, stamp: str) -> None:
    """Refuses other masks than a model remembers; one that remembers none may have any."""
    if metadata_of(compiled).get(STAMP, stamp) != stamp:
        name = f" '{masks}'" if isinstance(masks, str | Path) else ""
        raise MaskError(
            f"masks{name} | are not those that '{compiled}' was compiled with; give those, or "
            "compile again"
        )


def _keep(binding: "Binding", plan: WeightPlan | None) -> Callable[[], NDArray[np.bool_]]:
    def keep() -> NDArray[np.bool_]:
        kept = np.concatenate([mask.keep() for mask in binding.masks])
        for piece in () if plan is None else plan.pieces:
            if piece.role == "dense":
                _fill(kept, piece.rows, piece.columns)
        return kept

    return keep


def _fill(
    kept: NDArray[np.bool_],
    rows: Sequence[tuple[int, int]],
    columns: Sequence[tuple[int, int]],
) -> None:
    for top, bottom in rows:
        for left, right in columns:
            kept[top:bottom, left:right] = True


def recipe_beside(compiled: Path) -> CompileRecipe:
    """Returns the recipe a model was compiled with, from the report beside it.

    Raises:
        ModelError: if there is no such report, or it is damaged.
    """
    return read_beside(compiled, "report.json", _recipe_from_report)


def _recipe_from_report(text: str) -> CompileRecipe:
    given = parse_json(text)["recipe"]
    known = {field.name for field in fields(CompileRecipe)}
    values = {name: value for name, value in given.items() if name in known}
    for name in {"include", "ignore", "tokens"} & values.keys():
        values[name] = tuple(values[name])
    return CompileRecipe(**values)


def _plans_beside(compiled: Path) -> dict[str, WeightPlan]:
    plan = read_beside(compiled, "plan.json", Plan.from_json)
    return {weight.weight: weight for weight in plan.weights}


def read_beside(compiled: Path, name: str, read: Callable[[str], _Read]) -> _Read:
    """Reads a file that a compile wrote beside its model.

    Args:
        compiled: the compiled .onnx file.
        name: of the file.
        read: makes something of its text.

    Raises:
        ModelError: if the file is missing or damaged.
    """
    try:
        return read((compiled.parent / name).read_text("utf-8"))
    except DAMAGE as error:
        raise ModelError(
            f"model '{compiled}' | has no readable {name} beside it: {error}; verify the "
            "folder that patch-compile wrote"
        ) from error
