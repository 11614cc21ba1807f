"""The verbs `build` and `results`, and the engines of the main job."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from patch_compile import api
from patch_compile.cli.console import out, progress_bar, say
from patch_compile.cli.engine_tables import (
    engine_line,
    joined_table,
    joined_totals,
    results_table,
)
from patch_compile.errors import RecipeError
from patch_compile.recipe import BuildRecipe
from patch_compile.results import bundle_engines, import_results, note_results
from patch_compile.runtimes.tensorrt_rtx import DEFAULT_SM

if TYPE_CHECKING:
    from patch_compile.runtimes.engines import EngineResult

__all__ = ["build", "build_all", "results"]

_BUILD = BuildRecipe()


def build(
    model: Path,
    /,
    *,
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
    bundle: Path | None = None,
    dense: Path | None = None,
    masks: Path | None = None,
    recipe: Annotated[BuildRecipe, Parameter(name="*")] = _BUILD,
    json_: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Build engines of MODEL and tell which of its 2:4 products run sparse, and why not.

    `--engine trtexec` and `--engine tensorrt` build for the GPU at hand; without `--engine`
    TensorRT-RTX builds for `--sm`, with no GPU. Flags of trtexec stand behind `--`:
    `patch-compile build m.onnx --engine trtexec -- --tacticSources=-CUDNN`.

    With `--bundle` nothing is built here: the tar holds the model, masks, plan and a script
    for a machine with a GPU and trtexec; `patch-compile results` reads what comes back.

    Args:
        model: an .onnx file, compiled or not.
        output: folder of the engines; by default MODEL's.
        bundle: write this .tar for another machine, and build nothing.
        dense: for the bundle: the original model, to be built and timed beside MODEL.
        masks: for the bundle: masks.json, taken along with its arrays.
        json_: print everything as JSON.
    """
    if bundle is not None:
        _bundle(model, bundle, recipe, dense, masks)
        return
    if dense is not None or masks is not None:
        raise RecipeError("dense and masks | go into a bundle; give --bundle out.tar as well")
    if recipe.engine == "none":
        recipe = replace(recipe, engine="tensorrt_rtx")
    engines = build_all(model, output or model.parent, recipe, show=not json_)
    if json_:
        out.print(json.dumps({"engines": engines}, indent=1, allow_nan=False))


def _bundle(
    model: Path, target: Path, recipe: BuildRecipe, dense: Path | None, masks: Path | None
) -> None:
    arrays = None if masks is None else masks.with_suffix(".safetensors")
    papers = [] if masks is None else [masks]
    if arrays is not None and arrays.is_file():
        papers.append(arrays)
    with progress_bar() as progress:
        path = bundle_engines(
            model, target, recipe, dense=dense, papers=papers, progress=progress
        )
    say(f"wrote {path}; on the GPU machine: tar -xf {path.name}, then run its run.sh by bash")


def results(
    folder: Path,
    /,
    *,
    into: Path | None = None,
    json_: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Show what came back from a GPU machine: times, and which products run sparse.

    Args:
        folder: `results/` as the bundle's script packed it, unpacked.
        into: the compiled.onnx that was bundled: its report.json gets the engine.
        json_: print everything as JSON, each run's milliseconds included.
    """
    found = import_results(folder)
    if into is not None:
        note_results(found, into)
    if json_:
        out.print(json.dumps(found.to_json(), indent=1, allow_nan=False))
        return
    out.print(results_table(found))
    for model in found.models:
        if model.joined is not None and not model.error:
            out.print(joined_table(model.joined))
            out.print(joined_totals(model.joined))


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
