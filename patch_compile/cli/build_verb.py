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
from patch_compile.cli.outputs import check_folder, check_output
from patch_compile.errors import RecipeError
from patch_compile.io.load_masks import load_masks
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
        dense: the original model, to be built beside MODEL: its time and its layers show
            what cutting gains and which fusions it loses.
        masks: for the bundle: masks.json, taken along with its arrays.
        json_: print everything as JSON.
    """
    if bundle is not None:
        asked = {"output": output is not None, "json": json_}
        _check_bundle([name for name, given in asked.items() if given])
        _bundle(model, bundle, recipe, dense, masks)
        return
    if masks is not None:
        raise RecipeError("masks | go into a bundle; give --bundle out.tar as well")
    if recipe.engine == "none":
        recipe = replace(recipe, engine="tensorrt_rtx")
    folder = output or model.parent
    check_folder(folder)
    engines = build_all(model, folder, recipe, dense=dense, show=not json_)
    if json_:
        out.print(json.dumps({"engines": engines}, indent=1, allow_nan=False))


def _check_bundle(asked: list[str]) -> None:
    """Refuses what only a build can do."""
    if asked:
        raise RecipeError(
            f"{asked[0]} | belongs to engines, and with --bundle none is built here; leave "
            "one of them out"
        )


def _bundle(
    model: Path, target: Path, recipe: BuildRecipe, dense: Path | None, masks: Path | None
) -> None:
    check_output(target, [model, dense, masks], ".tar")
    arrays = None if masks is None else masks.with_suffix(".safetensors")
    papers = [] if masks is None else [masks]
    if masks is not None:
        load_masks(masks)
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
    model: Path,
    folder: Path,
    recipe: BuildRecipe,
    *,
    dense: Path | None = None,
    show: bool,
) -> tuple[dict[str, Any], ...]:
    """Builds one engine a target and returns what is known of each.

    Args:
        model: an .onnx file.
        folder: of the engines.
        recipe: see `BuildRecipe`.
        dense: the original model, to be built first, as `dense.engine`.
        show: print a line, and where a GPU told of kernels a table.
    """
    built = []
    for suffix, one in _targets(recipe):
        beside = None
        if dense is not None:
            beside = _built(dense, folder / f"dense{suffix}", one, None)
            built.append(_shown(dense, beside, None, show))
        result = _built(model, folder / f"{model.stem}{suffix}", one, beside)
        built.append(_shown(model, result, beside, show))
    return tuple(built)


def _built(
    model: Path, engine: Path, recipe: BuildRecipe, dense: "EngineResult | None"
) -> "EngineResult":
    with progress_bar() as progress:
        return api.build_engine(model, engine, recipe, progress, dense=dense)


def _targets(recipe: BuildRecipe) -> Iterator[tuple[str, BuildRecipe]]:
    """The end of an engine's name for each architecture, or for the GPU at hand."""
    if recipe.engine != "tensorrt_rtx":
        yield ".engine", recipe
        return
    for sm in recipe.sm or DEFAULT_SM:
        yield f".sm{sm}.engine", replace(recipe, sm=(sm,))


def _shown(
    model: Path, result: "EngineResult", dense: "EngineResult | None", show: bool
) -> dict[str, Any]:
    """Prints what is known of an engine, and returns it."""
    if show:
        out.print(engine_line(result))
        _show_products(model, result, dense)
    return _engine_facts(result)


def _show_products(model: Path, result: "EngineResult", dense: "EngineResult | None") -> None:
    evidence = result.evidence
    if not evidence.layers and evidence.sparsity.chose is None:
        return
    joined = api.join_engine(model, result, dense)
    if joined.weights:
        out.print(joined_table(joined))
        out.print(joined_totals(joined))


def _engine_facts(result: "EngineResult") -> dict[str, Any]:
    return {
        "engine": result.path.name,
        "bytes": result.bytes,
        "device_bytes": result.evidence.memory.total,
        "seconds": result.seconds,
        "sm": list(result.sm),
        "version": result.version,
        "requested": result.requested_sparse,
        "chosen": result.chosen,
        "model_sha256": result.model_sha256,
    }
