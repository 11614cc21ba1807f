"""The verb `build`, and the engines of the main job."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from patch_compile import api
from patch_compile.cli.console import out, progress_bar
from patch_compile.cli.engine_tables import engine_line, joined_table, joined_totals
from patch_compile.recipe import BuildRecipe
from patch_compile.runtimes.tensorrt_rtx import DEFAULT_SM

if TYPE_CHECKING:
    from patch_compile.runtimes.engines import EngineResult

__all__ = ["build", "build_all"]

_BUILD = BuildRecipe()


def build(
    model: Path,
    /,
    *,
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
    recipe: Annotated[BuildRecipe, Parameter(name="*")] = _BUILD,
    json_: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Build engines of MODEL and tell which of its 2:4 products run sparse, and why not.

    `--engine trtexec` and `--engine tensorrt` build for the GPU at hand; without `--engine`
    TensorRT-RTX builds for `--sm`, with no GPU. Flags of trtexec stand behind `--`:
    `patch-compile build m.onnx --engine trtexec -- --memPoolSize=workspace:8G`.

    Args:
        model: an .onnx file, compiled or not.
        output: folder of the engines; by default MODEL's.
        json_: print everything as JSON.
    """
    if recipe.engine == "none":
        recipe = replace(recipe, engine="tensorrt_rtx")
    engines = build_all(model, output or model.parent, recipe, show=not json_)
    if json_:
        out.print(json.dumps({"engines": engines}, indent=1, allow_nan=False))


def build_all(
    model: Path, folder: Path, recipe: BuildRecipe, *, show: bool
) -> tuple[dict[str, Any], ...]:
    """Builds one engine a target and returns what is known of each.

    Args:
        model: an .onnx file.
        folder: of the engines.
        recipe: see `BuildRecipe`.
        show: print a line, and where a GPU told of kernels a table.
    """
    built = []
    for engine, one in _targets(model, folder, recipe):
        with progress_bar() as progress:
            result = api.build_engine(model, engine, one, progress)
        built.append(_engine_facts(result))
        if show:
            _show(model, result)
    return tuple(built)


def _targets(
    model: Path, folder: Path, recipe: BuildRecipe
) -> Iterator[tuple[Path, BuildRecipe]]:
    """One engine an architecture, or one for the GPU at hand."""
    if recipe.engine != "tensorrt_rtx":
        yield folder / f"{model.stem}.engine", recipe
        return
    for sm in recipe.sm or DEFAULT_SM:
        yield folder / f"{model.stem}.sm{sm}.engine", replace(recipe, sm=(sm,))


def _show(model: Path, result: "EngineResult") -> None:
    out.print(engine_line(result))
    evidence = result.evidence
    if not evidence.layers and evidence.sparsity.chose is None:
        return
    joined = api.join_engine(model, result)
    if joined.weights:
        out.print(joined_table(joined))
        out.print(joined_totals(joined))


def _engine_facts(result: "EngineResult") -> dict[str, Any]:
    return {
        "engine": result.path.name,
        "bytes": result.bytes,
        "seconds": result.seconds,
        "sm": list(result.sm),
        "version": result.version,
        "requested": result.requested_sparse,
        "chosen": result.chosen,
        "model_sha256": result.model_sha256,
    }
