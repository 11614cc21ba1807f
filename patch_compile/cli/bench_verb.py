"""The verb `bench`: parses, calls the API, prints."""

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.table import Table

from patch_compile.bench.measure import bench_models
from patch_compile.bench.plot import check_plot, plot_bench
from patch_compile.bench.results import BenchResult, BenchRow, Measured
from patch_compile.bench.statistics import Interval
from patch_compile.cli.console import out, progress_bar, say
from patch_compile.cli.tables import plain_table
from patch_compile.errors import RecipeError
from patch_compile.io.atomic import check_writable, write_text
from patch_compile.recipe import BenchRecipe

__all__ = ["bench"]

_BENCH = BenchRecipe()


def bench(
    dense: Path,
    compiled: Path,
    /,
    *,
    baseline: tuple[str, ...] = (),
    cache: Path | None = None,
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
    plot: Path | None = None,
    recipe: Annotated[BenchRecipe, Parameter(name="*")] = _BENCH,
    json_: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Time COMPILED against DENSE, in turns, and say what the difference is worth.

    DENSE is opened twice: its two sessions show the noise of this machine at this time, and a
    difference inside it is called that.

    Args:
        dense: the original .onnx file.
        compiled: compiled.onnx.
        baseline: one more model as NAME=FILE: the best dense one, all 2:4, FFN only; may be
            given several times.
        cache: folder where TensorRT providers keep engines and timings for the next time.
        output: also write every number, samples included, as JSON there.
        plot: also draw ratios and intervals into this .png, .svg or .pdf; wants the extra
            `plot`.
        json_: print every number as JSON.
    """
    if plot is not None:
        check_plot(plot)
    for written in (output, plot):
        if written is not None:
            check_writable(written.parent)
    named = dict(_named(text) for text in baseline)
    with progress_bar() as progress:
        found = bench_models(
            dense, compiled, recipe, baselines=named, cache=cache, progress=progress
        )
    text = json.dumps(found.to_json(), indent=1, allow_nan=False) + "\n"
    if json_:
        out.print(text, end="")
    else:
        _print(found)
    if output is not None:
        write_text(output, text)
        say(f"wrote {output}")
    if plot is not None:
        plot_bench(found, plot)
        say(f"wrote {plot}")


def _named(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise RecipeError(f"baseline | is {text!r}; expected NAME=FILE, as in all24=a.onnx")
    return name, Path(path)


def _print(found: BenchResult) -> None:
    out.print(_times(found))
    out.print(_models(found))
    for tokens, floor in found.noise.items():
        out.print(
            f"noise at {tokens} tokens: two sessions of the dense model differ by up to "
            f"{floor:.1%}"
        )
    for row in found.rows:
        if row.verdict is not None:
            out.print(_sentence(row))


def _times(found: BenchResult) -> Table:
    share = f"{found.recipe.confidence:.0%}"
    columns = ["tokens", "median ms", share, "tokens/s", "latency / dense", share]
    predicted = any(row.predicted for row in found.rows)
    if predicted:
        columns.append("predicted")
    table = plain_table(
        f"{found.recipe.runtime}, onnxruntime {found.version}, {found.recipe.rounds} rounds",
        "model",
        *columns,
        right=len(columns),
    )
    for row in found.rows:
        cells = _cells(row)
        table.add_row(*(cells if predicted else cells[:-1]))
    return table


def _cells(row: BenchRow) -> list[str]:
    milliseconds = Interval(*(1e3 * s for s in vars(row.seconds).values()))
    return [
        row.model,
        str(row.tokens),
        f"{milliseconds.median:.3f}",
        _range(milliseconds),
        f"{row.tokens_per_second:.0f}",
        f"{row.ratio.median:.3f}",
        _range(row.ratio),
        ", ".join(f"{ratio:.3f} ({target})" for target, ratio in row.predicted.items()) or "-",
    ]


def _range(interval: Interval) -> str:
    return f"{interval.low:.3f} to {interval.high:.3f}"


def _models(found: BenchResult) -> Table:
    columns = ("MB on disk", "build s", "peak MB", "nodes")
    table = plain_table("Models", "model", *columns, right=4)
    for model in found.models:
        table.add_row(*_facts(model))
    return table


def _facts(model: Measured) -> list[str]:
    nodes = {} if model.nodes is None else model.nodes
    return [
        model.model,
        f"{model.bytes / 1e6:.1f}",
        f"{model.build_seconds:.2f}",
        "unknown" if model.peak_bytes is None else f"{model.peak_bytes / 1e6:.0f}",
        ", ".join(f"{count} {name}" for name, count in nodes.items()) or "unknown",
    ]


def _sentence(row: BenchRow) -> str:
    change = f"{abs(row.ratio.median - 1):.1%}"
    where = f"{row.model} at {row.tokens} tokens:"
    if row.verdict == "inside the noise":
        return f"{where} inside the noise (measured {row.ratio.median:.3f} of dense)"
    return f"{where} {change} {row.verdict} than dense"
