"""The verb `plan`: what compiling would do here, or would buy on other GPUs."""

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from patch_compile.cli import tables
from patch_compile.cli.console import out, print_json, print_text, progress_bar, say
from patch_compile.cli.outputs import COMPARISON, PLAN, check_json, check_output
from patch_compile.cli.unused import refuse_unused
from patch_compile.compiler import plan_model
from patch_compile.errors import RecipeError, RuntimeUnavailable
from patch_compile.io.atomic import write_text
from patch_compile.recipe import CompileRecipe
from patch_compile.report import Report
from patch_compile.whatif import WhatIf, named_targets, what_if
from patch_compile.whatif_plot import plot_what_if

__all__ = ["plan", "print_tables"]

_COMPILE = CompileRecipe()
_PLAN = Path("plan.json")
_PICTURES = (".png", ".svg")


def plan(
    model: Path,
    /,
    *,
    tiles: str | None = None,
    targets: str | None = None,
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
    recipe: Annotated[CompileRecipe, Parameter(name="*")] = _COMPILE,
    json_: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Show what compiling would do, without doing it; or what it would buy on other GPUs.

    With `targets` the comparison also goes to plan.json, and as a picture to plan.png and
    plan.svg beside it, where matplotlib is installed.

    Args:
        model: the dense .onnx file.
        tiles: masks.json, a .npz, or `infer`; with `targets` it may be left out, which asks
            what 2:4 would buy at best, from shapes alone.
        targets: compare predicted speed-ups: `all`, or GPUs and dtypes as in
            `a100,h100-fp8`, or tables that `calibrate` wrote, at each number of `tokens`.
        output: also write the plan there; with `targets` the comparison, in place of
            plan.json. A .json file, which may replace an earlier one of the same.
        json_: print the report, or the comparison, as JSON.
    """
    if targets is not None:
        _check_comparison(recipe)
        _compare(model, tiles, targets.split(","), recipe, output or _PLAN, json_)
        return
    if tiles is None:
        raise RecipeError("tiles | are missing; give --tiles masks.json, or ask --targets all")
    if recipe.target is None:
        refuse_unused(recipe, "target", ["tokens"])
    if output is not None:
        check_json(output, PLAN, [model, tiles, recipe.target])
    with progress_bar() as progress:
        planned = plan_model(model, tiles, recipe, progress)
    if json_:
        print_text(planned.report.to_json())
    else:
        print_tables(planned.report)
    if output is not None:
        write_text(output, planned.plan.to_json())
        say(f"wrote {output}")


def _check_comparison(recipe: CompileRecipe) -> None:
    """Refuses what a comparison does not read."""
    for name in ("target", "sparsity", "speedup", "max_loss"):
        value = getattr(recipe, name)
        if value is not None:
            raise RecipeError(
                f"{name.replace('_', '-')} | is {value!r}, given with --targets, which "
                "compares without it; leave one of them out"
            )
    shared = [entry for entry in recipe.tokens if ":" in entry]
    if shared and recipe.tokens != _COMPILE.tokens:
        raise RecipeError(
            f"tokens | has '{shared[0]}', and --targets predicts each number of tokens by "
            f"itself; give it without a share, as {shared[0].partition(':')[0]}"
        )


def print_tables(report: Report) -> None:
    """Prints a report as tables for people."""
    out.print(tables.report_table(report))
    out.print(tables.totals(report))


def _compare(
    model: Path,
    tiles: str | None,
    targets: list[str],
    recipe: CompileRecipe,
    output: Path,
    as_json: bool,
) -> None:
    reads = [model, tiles, *targets]
    check_json(output, COMPARISON, reads)
    for suffix in _PICTURES:
        check_output(output.with_suffix(suffix), reads)
    with progress_bar() as progress:
        rows = what_if(model, tiles, named_targets(targets), recipe, progress)
    facts = {"version": 1, "rows": [row.to_json() for row in rows]}
    if as_json:
        print_json(facts)
    else:
        out.print(tables.what_if_table(rows, masked=tiles is not None))
        for note in tables.what_if_notes(rows):
            out.print(note)
    write_text(output, json.dumps(facts, indent=1) + "\n")
    say(f"wrote {output}")
    _draw(rows, output)


def _draw(rows: list[WhatIf], output: Path) -> None:
    for suffix in _PICTURES:
        picture = output.with_suffix(suffix)
        try:
            plot_what_if(rows, picture)
        except RuntimeUnavailable as error:
            say(f"no picture: {error}")
            return
        say(f"wrote {picture}")
