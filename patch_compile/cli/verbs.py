"""The verbs. Each parses, calls the API, prints."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from patch_compile import api, verification
from patch_compile.cli import tables
from patch_compile.cli.build_verb import build_all
from patch_compile.cli.console import out, print_json, print_text, progress_bar, say
from patch_compile.cli.outputs import check_folder, check_output
from patch_compile.cli.plan_verb import plan, print_tables
from patch_compile.cli.quantizing import check_calibration, quantize_step
from patch_compile.cli.unused import refuse_unused
from patch_compile.compiler import compile_model
from patch_compile.demo import run_demo
from patch_compile.errors import Mismatch
from patch_compile.inspection import inspect_model
from patch_compile.io.load_masks import load_masks
from patch_compile.recipe import (
    BuildRecipe,
    CompileRecipe,
    ExportRecipe,
    QuantizeRecipe,
    VerifyRecipe,
)

__all__ = ["compile_", "demo", "export", "inspect", "verify"]

# `name="*"` makes a recipe's fields options of their own: there is no second list of them.
_FLAT = Parameter(name="*")
Output = Annotated[Path, Parameter(alias="-o")]
OptionalOutput = Annotated[Path | None, Parameter(alias="-o")]
Json = Annotated[bool, Parameter(name="--json", negative="")]

_BUILD = BuildRecipe()
_COMPILE = CompileRecipe()
_EXPORT = ExportRecipe()
_QUANTIZE = QuantizeRecipe()
_VERIFY = VerifyRecipe()


def compile_(
    model: Path,
    /,
    *,
    tiles: str,
    output: Output = Path("out"),
    recipe: Annotated[CompileRecipe, _FLAT] = _COMPILE,
    engine: Annotated[BuildRecipe, _FLAT] = _BUILD,
    quantizer: Annotated[QuantizeRecipe, _FLAT] = _QUANTIZE,
    data: Path | None = None,
    tokenizer: Path | None = None,
    dry_run: bool = False,
    json_: Json = False,
) -> None:
    """Rewrite MODEL so that every masked MatMul is dense and 2:4 pieces.

    Args:
        model: the dense .onnx file.
        tiles: masks.json, PATCH's mask.npz, MaskLLM's mask_compressed.npz, or `infer`.
        output: folder for compiled.onnx, its data, plan.json, report.json, report.html and
            engines.
        data: text (UTF-8) that quantising calibrates on.
        tokenizer: tokenizer.json for it; by default the one beside MODEL.
        dry_run: plan and report, write nothing.
        json_: print the report as JSON.
    """
    _check_read(recipe, engine, quantizer)
    text = tokenizer or model.with_name("tokenizer.json")
    check_calibration(quantizer, data, text)
    if dry_run:
        plan(model, tiles=tiles, recipe=recipe, json_=json_)
        return
    check_folder(output)
    # What the model lies in is told by `Compiled.save`, which knows its files.
    for name in ("plan.json", "report.json", "report.html"):
        check_output(output / name, [tiles, data, text, recipe.target])
    if engine.engine != "none":
        api.check_engine(engine)
    with progress_bar() as progress:
        compiled = compile_model(model, tiles, recipe, progress)
        path = compiled.save(output, progress)
    if not json_:
        print_tables(compiled.report)
    say(f"wrote {path}")
    if quantizer.quantize is not None and data is not None:
        quantize_step(path, quantizer, data, text, show=not json_)
    if engine.engine != "none":
        build_all(path, output, engine, show=not json_)
    if json_:
        print_text(path.with_name("report.json").read_text("utf-8"))


def _check_read(recipe: CompileRecipe, engine: BuildRecipe, quantizer: QuantizeRecipe) -> None:
    """Refuses options of a step that is not asked for."""
    if recipe.target is None:
        refuse_unused(recipe, "target", ["tokens"])
    if engine.engine == "none":
        refuse_unused(engine, "engine")
    if quantizer.quantize is None:
        refuse_unused(quantizer, "quantize")


def export(
    model: str,
    /,
    *,
    output: Output = Path("model.onnx"),
    masks: Path | None = None,
    recipe: Annotated[ExportRecipe, _FLAT] = _EXPORT,
) -> None:
    """Export MODEL, dense, to ONNX with dynamic batch and sequence.

    Args:
        model: a Hugging Face directory, a hub id, or a GGUF file.
        output: the .onnx file; data, tokenizer and configuration go beside it.
        masks: check these against the model first; the compiler applies them.
    """
    known = None if masks is None else load_masks(masks)
    with progress_bar() as progress:
        path = api.export_onnx(model, output, recipe, known, progress)
    say(f"wrote {path}")


def inspect(
    model: Path,
    /,
    *,
    tile: str = "128x128",
    maps: bool = False,
    json_: Json = False,
) -> None:
    """Show the zeros and the 2:4 tiles that MODEL's weights already have.

    Args:
        model: any .onnx file.
        tile: geometry of the tile maps.
        maps: draw every tile map, `#` for 2:4 and `.` for dense.
        json_: print everything as JSON.
    """
    with progress_bar() as progress:
        found = inspect_model(model, tile, progress)
    if json_:
        print_json(
            {
                "weights": [weight.to_json() for weight in found.weights],
                "left_alone": found.left_alone,
            }
        )
        return
    out.print(tables.inspection_table(found))
    for name, reason in found.left_alone.items():
        out.print(f"left alone: {name} ({reason})")
    for weight in found.weights if maps else ():
        out.print(tables.tile_map(weight))


def verify(
    model: Path,
    compiled: Path,
    /,
    *,
    tiles: str,
    data: Path | None = None,
    tokenizer: Path | None = None,
    recipe: Annotated[VerifyRecipe, _FLAT] = _VERIFY,
    json_: Json = False,
) -> None:
    """Compare COMPILED with the masked MODEL on onnxruntime; exit 2 when over tolerance.

    Args:
        model: the dense .onnx file.
        compiled: compiled.onnx, with report.json beside it; after `restore` also plan.json.
        tiles: the masks it was compiled with.
        data: text (UTF-8) for the perplexity of dense, masked and compiled.
        tokenizer: tokenizer.json; by default the one beside MODEL.
        json_: print everything as JSON.
    """
    with progress_bar() as progress:
        found = verification.verify(
            model, compiled, tiles, recipe, data=data, tokenizer=tokenizer, progress=progress
        )
    if json_:
        print_json(found.to_json())
    else:
        out.print(tables.verification_table(found))
        for name, value in found.perplexity.items():
            out.print(f"perplexity {name:9} {value:.4f}  ({found.tokens} predictions)")
        for name, reason in found.unapplied.items():
            out.print(f"not applied: mask {name} ({reason})", markup=False)
    if not found.passed:
        raise Mismatch(f"'{compiled}' | differs from the masked model by more than allowed")


def demo(*, output: Output = Path("demo-out")) -> None:
    """Run the main job on SmolLM2-135M from start to end; a second run is quick.

    Args:
        output: folder of everything the demo makes.
    """
    with progress_bar() as progress:
        table = run_demo(output, progress, say)
    out.print(table)
