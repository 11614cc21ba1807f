"""Tables of a benchmark, and what may be said of it."""

from collections.abc import Iterator

from rich.table import Table

from patch_compile.bench.results import BenchResult, BenchRow, Measured
from patch_compile.bench.statistics import Interval
from patch_compile.cli.console import out
from patch_compile.cli.tables import plain_table

__all__ = ["print_bench"]

# Runtimes whose engines are built, so that two of one model may hold other kernels.
_BUILDERS = ("ort-tensorrt", "ort-rtx", "trtexec")


def print_bench(found: BenchResult) -> None:
    """Prints tables of times and models, then what may be said of them in sentences."""
    out.print(_times(found))
    out.print(_models(found))
    for line in _sentences(found):
        out.print(line)


def _sentences(found: BenchResult) -> Iterator[str]:
    kind = "engines" if found.recipe.runtime in _BUILDERS else "sessions"
    for tokens in dict.fromkeys(row.tokens for row in found.rows):
        floor = found.noise.get(tokens)
        yield f"noise at {tokens} tokens: " + (
            "unknown, for the dense model was measured once alone"
            if floor is None
            else f"{kind} of the dense model differ by up to {floor:.1%}"
        )
    yield from (_sentence(row) for row in found.rows if row.verdict is not None)
    if set(found.recipe.baselines) - {"dense"}:
        yield "baselines are 2:4 by magnitude: for times, not for quality"
    if any(row.predicted for row in found.rows):
        yield "predicted: of the masked weights alone; measured: of the whole model"
    if found.cast:
        types = {m.model: ", ".join(m.types) for m in found.models}
        yield (
            f"dense has weights of {types['dense']}, compiled of {types['compiled']}: the "
            "ratio holds what that gains too"
            + ("" if "dense" in found.recipe.baselines else "; see --baselines dense")
        )


def _times(found: BenchResult) -> Table:
    share = f"{found.recipe.confidence:.0%}"
    columns = ["tokens", "median ms", share, "tokens/s", "latency / dense", share]
    predicted = any(row.predicted for row in found.rows)
    if predicted:
        columns.append("predicted")
    table = plain_table(
        f"{found.recipe.runtime}, {_version(found)}, {found.device}, "
        f"{found.recipe.rounds} rounds",
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
    columns = ("MB on disk", "engine MB", "GPU MB", "build s", "peak MB", "nodes")
    table = plain_table("Models", "model", *columns, right=len(columns))
    for model in found.models:
        table.add_row(*_facts(model))
    return table


def _version(found: BenchResult) -> str:
    return " ".join(*found.versions().items()) if found.versions() else "of unknown version"


def _facts(model: Measured) -> list[str]:
    nodes = {} if model.nodes is None else model.nodes
    return [
        model.model,
        _megabytes(model.bytes),
        _megabytes(model.engine_bytes),
        _megabytes(model.device_bytes),
        "unknown" if model.build_seconds is None else f"{model.build_seconds:.2f}",
        _megabytes(model.peak_bytes),
        ", ".join(f"{count} {name}" for name, count in nodes.items()) or "unknown",
    ]


def _megabytes(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 1e6:.1f}"


def _sentence(row: BenchRow) -> str:
    change = f"{abs(row.ratio.median - 1):.1%}"
    where = f"{row.model} at {row.tokens} tokens:"
    if row.verdict == "inside the noise":
        return f"{where} inside the noise (measured {row.ratio.median:.3f} of dense)"
    return f"{where} {change} {row.verdict} than dense"
