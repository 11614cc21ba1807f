"""The verb `bench`: parses, calls the API, prints."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from patch_compile.bench.imported import imported_bench
from patch_compile.bench.measure import bench_models
from patch_compile.bench.plot import plot_bench
from patch_compile.bench.results import BenchResult
from patch_compile.cli.bench_tables import print_bench
from patch_compile.cli.console import out, progress_bar, say
from patch_compile.cli.outputs import BENCH, check_json, check_output
from patch_compile.cli.unused import refuse_given
from patch_compile.errors import RecipeError
from patch_compile.figures import check_plot
from patch_compile.io.atomic import check_writable, write_text
from patch_compile.recipe import BenchRecipe

__all__ = ["bench"]

_BENCH = BenchRecipe()


def bench(
    dense: Path | None = None,
    compiled: Path | None = None,
    /,
    *,
    baseline: tuple[str, ...] = (),
    import_: Annotated[Path | None, Parameter(name="--import")] = None,
    into: Path | None = None,
    cache: Path | None = None,
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
    plot: Path | None = None,
    recipe: Annotated[BenchRecipe, Parameter(name="*")] = _BENCH,
    json_: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Time COMPILED against DENSE, in turns, and say what the difference is worth.

    DENSE is opened twice, on TensorRT built twice: its two sessions show the noise of this
    machine at this time, and a difference inside it is called that. The report beside
    COMPILED gets the times.

    With `--import` nothing is timed here: the folder holds what a bundle's script measured on
    a GPU machine, see `patch-compile build --bundle`.

    Args:
        dense: the original .onnx file.
        compiled: compiled.onnx.
        baseline: one more model as NAME=FILE: the best dense one, all 2:4, FFN only; may be
            given several times. `baselines` makes such models.
        import_: `results/` of a bundle, unpacked, in place of DENSE and COMPILED.
        into: with `import`, the compiled.onnx that was bundled: its report gets the engine
            and the times.
        cache: folder where TensorRT keeps engines and timings for the next time.
        output: also write every number, samples included, into this .json.
        plot: also draw ratios and intervals into this .png, .svg or .pdf; wants the extra
            `plot`.
        json_: print every number as JSON.
    """
    _check_outputs(output, plot, [dense, *_files(baseline), *_beside(into or compiled)])
    if import_ is not None:
        _refuse_models(dense, compiled)
        what = {"baseline": bool(baseline), "cache": cache is not None}
        refuse_given("import", "times nothing", **what, **_changed(recipe))
        found = imported_bench(import_, into)
    else:
        found = _measured(dense, compiled, baseline, into, cache, recipe)
    text = json.dumps(found.to_json(), indent=1, allow_nan=False) + "\n"
    if json_:
        out.print(text, end="")
    else:
        print_bench(found)
    if output is not None:
        write_text(output, text)
        say(f"wrote {output}")
    if plot is not None:
        plot_bench(found, plot)
        say(f"wrote {plot}")


def _check_outputs(output: Path | None, plot: Path | None, reads: list[Path | None]) -> None:
    if plot is not None:
        check_plot(plot)
        check_output(plot, reads)
    if output is not None:
        check_json(output, BENCH, reads)
    for written in (output, plot):
        if written is not None:
            check_writable(written.parent)


def _beside(compiled: Path | None) -> list[Path | None]:
    """A compiled model and what is kept beside it, some of which gets the times."""
    if compiled is None:
        return []
    papers = ("plan.json", "report.json", "report.html")
    return [compiled, *(compiled.with_name(name) for name in papers)]


def _files(baseline: tuple[str, ...]) -> list[Path | None]:
    return [Path(text.partition("=")[2]) for text in baseline]


def _refuse_models(*given: Path | None) -> None:
    models = [path for path in given if path is not None]
    if models:
        raise RecipeError(
            f"model '{models[0]}' | is given with --import, which times nothing; leave one of "
            "them out (--into names the compiled model)"
        )


def _changed(recipe: BenchRecipe) -> dict[str, bool]:
    return {
        field.name: getattr(recipe, field.name) != getattr(_BENCH, field.name)
        for field in fields(recipe)
    }


def _measured(
    dense: Path | None,
    compiled: Path | None,
    baseline: tuple[str, ...],
    into: Path | None,
    cache: Path | None,
    recipe: BenchRecipe,
) -> BenchResult:
    if dense is None or compiled is None:
        raise RecipeError(
            "models | are missing; give DENSE and COMPILED, or the results of a bundle by "
            "--import"
        )
    if into is not None:
        raise RecipeError("into | goes with --import; the report beside COMPILED gets times")
    named = dict(_named(text) for text in baseline)
    with progress_bar() as progress:
        return bench_models(
            dense, compiled, recipe, baselines=named, cache=cache, progress=progress
        )


def _named(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise RecipeError(f"baseline | is {text!r}; expected NAME=FILE, as in all24=a.onnx")
    return name, Path(path)
