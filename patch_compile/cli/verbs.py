"""The verbs. Each parses, calls the API, prints."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from patch_compile import api, verification
from patch_compile.cli import tables
from patch_compile.cli.build_verb import build_all
from patch_compile.cli.console import out, progress_bar, say
from patch_compile.cli.quantizing import check_calibration, quantize_step
from patch_compile.compiler import compile_model, plan_model
from patch_compile.demo import run_demo
from patch_compile.errors import Mismatch, RecipeError
from patch_compile.inspection import inspect_model
from patch_compile.io.atomic import check_writable, write_text
from patch_compile.io.load_masks import load_masks
from patch_compile.io.masks_file import save_masks
from patch_compile.recipe import (
    BuildRecipe,
    CompileRecipe,
    ExportRecipe,
    LearnRecipe,
    QuantizeRecipe,
    VerifyRecipe,
)
from patch_compile.report import Report
from patch_compile.tiles.cut import cut_masks
from patch_compile.whatif import named_targets, what_if

__all__ = ["compile_", "cut", "demo", "export", "inspect", "learn", "plan", "verify"]

# `name="*"` makes a recipe's fields options of their own: there is no second list of them.
_FLAT = Parameter(name="*")
Output = Annotated[Path, Parameter(alias="-o")]
OptionalOutput = Annotated[Path | None, Parameter(alias="-o")]
Json = Annotated[bool, Parameter(name="--json", negative="")]

_BUILD = BuildRecipe()
_COMPILE = CompileRecipe()
_EXPORT = ExportRecipe()
_LEARN = LearnRecipe()
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
    if dry_run:
        plan(model, tiles=tiles, recipe=recipe, json_=json_)
        return
    check_calibration(quantizer, data, tokenizer or model.with_name("tokenizer.json"))
    with progress_bar() as progress:
        compiled = compile_model(model, tiles, recipe, progress)
        path = compiled.save(output, progress)
    if not json_:
        _print_tables(compiled.report)
    say(f"wrote {path}")
    if quantizer.quantize is not None and data is not None:
        text = tokenizer or model.with_name("tokenizer.json")
        quantize_step(path, quantizer, data, text, show=not json_)
    if engine.engine != "none":
        build_all(path, output, engine, show=not json_)
    if json_:
        _print_text(path.with_name("report.json").read_text("utf-8"))


def plan(
    model: Path,
    /,
    *,
    tiles: str | None = None,
    targets: str | None = None,
    output: OptionalOutput = None,
    recipe: Annotated[CompileRecipe, _FLAT] = _COMPILE,
    json_: Json = False,
) -> None:
    """Show what compiling would do, without doing it; or what it would buy on other GPUs.

    Args:
        model: the dense .onnx file.
        tiles: masks.json, a .npz, or `infer`; with `targets` it may be left out, which asks
            what 2:4 would buy at best, from shapes alone.
        targets: compare predicted speed-ups: `all`, or GPUs and dtypes as in
            `a100,h100-fp8`, at each number of `tokens`.
        output: also write plan.json, or the comparison, there.
        json_: print the report, or the comparison, as JSON.
    """
    if targets is not None:
        _compare(model, tiles, targets.split(","), recipe, output, json_)
        return
    if tiles is None:
        raise RecipeError("tiles | are missing; give --tiles masks.json, or ask --targets all")
    with progress_bar() as progress:
        planned = plan_model(model, tiles, recipe, progress)
    if json_:
        _print_text(planned.report.to_json())
    else:
        _print_tables(planned.report)
    if output is not None:
        write_text(output, planned.plan.to_json())
        say(f"wrote {output}")


def _compare(
    model: Path,
    tiles: str | None,
    targets: list[str],
    recipe: CompileRecipe,
    output: Path | None,
    as_json: bool,
) -> None:
    with progress_bar() as progress:
        rows = what_if(model, tiles, named_targets(targets), recipe, progress)
    facts = {"version": 1, "rows": [row.to_json() for row in rows]}
    if as_json:
        _print_json(facts)
    else:
        out.print(tables.what_if_table(rows, masked=tiles is not None))
        if any(row.estimate for row in rows):
            out.print("* nothing was measured on this GPU: scaled from another by datasheets")
    if output is not None:
        write_text(output, json.dumps(facts, indent=1) + "\n")
        say(f"wrote {output}")


def learn(
    model: str,
    /,
    *,
    data: tuple[str, ...] = (),
    output: Output = Path("masks.json"),
    run: Path | None = None,
    resume: Annotated[bool, Parameter(negative="")] = False,
    tensorboard: Annotated[bool, Parameter(negative="")] = False,
    checkpoint: Path | None = None,
    recipe: Annotated[LearnRecipe, _FLAT] = _LEARN,
) -> None:
    """Make masks for MODEL: 2:4 patterns, and which tiles take them.

    Args:
        model: a Hugging Face directory, a hub id, or a GGUF file.
        data: text to calibrate on and to learn from: UTF-8, .jsonl with a `text` field, or a
            data set as hf:NAME:CONFIG:SPLIT, streamed; may be given several times.
        output: masks.json; its arrays go beside it. Of several sparsities, each gets a file:
            masks-0.25.json.
        run: folder of a learning method's checkpoints and log.csv; by default OUTPUT's name
            with .run.
        resume: go on from the checkpoint in the run's folder.
        tensorboard: write the log into the run's folder for TensorBoard too.
        checkpoint: folder for the model whose weights --update changed; the masks are for it.
    """
    folder = run or output.with_suffix(".run")
    check_writable(output.parent)
    try:
        with progress_bar() as progress:
            found = api.learn_candidates(
                model,
                data,
                recipe,
                run=folder,
                resume=resume,
                tensorboard=tensorboard,
                checkpoint=checkpoint,
                progress=progress if _first_process() else None,
            )
    except KeyboardInterrupt:
        if (folder / "state.json").exists():
            say(f"'{folder}' | keeps what was learned so far; go on with --resume")
        raise
    if checkpoint is not None and _first_process():
        say(f"wrote {checkpoint}")
    for sparsity in recipe.sparsity if _first_process() else ():
        masks = found.cut(sparsity)
        path = output if len(recipe.sparsity) == 1 else _numbered(output, sparsity)
        save_masks(masks, path)
        reached = f"sparsity {masks.sparsity:.4%} (asked {sparsity:.2%})"
        out.print(f"{len(masks.weights)} weights, {reached}")
        say(f"wrote {path}")


def _first_process() -> bool:
    """Tells, under torchrun or accelerate launch, which of the processes speaks and writes."""
    return os.environ.get("RANK", "0") == "0"


def _numbered(path: Path, sparsity: float) -> Path:
    return path.with_name(f"{path.stem}-{sparsity:g}{path.suffix}")


def cut(masks: Path, /, *, sparsity: float, output: Output = Path("masks.json")) -> None:
    """Lower the sparsity of MASKS by their scores: the dearest tiles become dense again.

    Args:
        masks: masks.json with scores, as `learn` writes them.
        sparsity: zeros over all weights, 0 to that of MASKS.
        output: masks.json; its arrays go beside it.
    """
    relaxed = cut_masks(load_masks(masks), sparsity)
    save_masks(relaxed, output)
    out.print(f"{len(relaxed.weights)} weights, sparsity {relaxed.sparsity:.4%}")
    say(f"wrote {output}")


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
        _print_json(
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
        compiled: compiled.onnx, with report.json and plan.json beside it.
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
        _print_json(found.to_json())
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


def _print_tables(report: Report) -> None:
    out.print(tables.report_table(report))
    out.print(tables.totals(report))


def _print_json(data: dict[str, Any]) -> None:
    _print_text(json.dumps(data, indent=1, allow_nan=False) + "\n")


def _print_text(text: str) -> None:
    """Prints exactly this text."""
    out.print(text, end="")
