"""Tables of engines: which products run sparse, and why the rest does not."""

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.table import Table

from patch_compile.joining import Joined, WeightJoin
from patch_compile.results import ModelResult, Results
from patch_compile.whynot import too_old

if TYPE_CHECKING:
    from patch_compile.runtimes.engines import EngineResult

__all__ = ["engine_line", "joined_table", "joined_totals", "results_table"]

# Longer tables show the beginning; report.json holds every weight.
_ROWS = 40
_REASONS = 6
# Kernels' names run to 120 letters; the family is at the front.
_KERNEL = 32


def engine_line(result: "EngineResult") -> str:
    """One engine in a line, with its latency where it was measured."""
    requested = "requested" if result.requested_sparse else "not requested"
    measured = result.evidence.performance
    latency = measured.compute if measured is not None else None
    memory = result.evidence.memory.total
    wanted = "unknown" if memory is None else f"{memory / 1e6:.1f} MB"
    return (
        f"engine {result.path.name}: {result.bytes / 1e6:.1f} MB in {result.seconds:.1f} s; "
        f"sparse kernels {requested}, chosen: {_chosen(result)}; GPU memory {wanted}"
        + ("" if latency is None else f"; GPU compute median {latency.median:g} ms")
    )


def _chosen(result: "EngineResult") -> str:
    old = [sm for sm in result.sm if too_old(sm)]
    return f"none, SM {old[0]} has no sparse tensor cores" if old else str(result.chosen)


def joined_table(joined: Joined) -> Table:
    """One row a weight that has 2:4 products."""
    table = Table(title="2:4 products", box=None, title_justify="left", pad_edge=False)
    for name in ("weight", "eligible", "chosen", "not chosen", "unknown", "kernel", "why not"):
        numeric = name in ("eligible", "chosen", "not chosen", "unknown")
        table.add_column(name, justify="right" if numeric else "left")
    for weight in joined.weights[:_ROWS]:
        table.add_row(*_row(weight))
    if len(joined.weights) > _ROWS:
        table.add_row(f"… {len(joined.weights) - _ROWS} more in report.json")
    return table


def results_table(results: Results) -> Table:
    """One row a model: its engine, its time on the GPU against the dense model's."""
    gpu = "unknown GPU" if results.gpu is None else results.gpu.name
    table = Table(
        title=f"TensorRT {results.version or 'unknown'} on {gpu}",
        box=None,
        title_justify="left",
        pad_edge=False,
    )
    for name in ("model", "engine MB", "runs", "median ms", "against dense", "found", "chose"):
        table.add_column(name, justify="left" if name == "model" else "right")
    dense = next((m.median for m in results.models if m.name == "dense"), None)
    for model in results.models:
        table.add_row(*_result_row(model, dense))
    return table


def _result_row(model: ModelResult, dense: float | None) -> tuple[str, ...]:
    if model.error:
        return model.name, model.error, "", "", "", "", ""
    sparsity, median = model.evidence.sparsity, model.median
    against = None if median is None or dense is None else median / dense
    return (
        model.name,
        "-" if model.bytes is None else f"{model.bytes / 1e6:.1f}",
        str(len(model.timed)),
        "-" if median is None else f"{median:.4g}",
        "-" if against is None else f"{against:.3f}",
        "unknown" if sparsity.found is None else str(sparsity.found),
        "unknown" if sparsity.chose is None else str(sparsity.chose),
    )


def _row(weight: WeightJoin) -> tuple[str, ...]:
    tactics = dict.fromkeys(piece.tactic[:_KERNEL] for piece in weight.pieces if piece.tactic)
    reasons = dict.fromkeys(piece.reason for piece in weight.pieces if piece.reason)
    return (
        weight.weight.replace("+", " + "),
        *(str(n) for n in (weight.eligible, weight.chosen, weight.not_chosen, weight.unknown)),
        ", ".join(tactics) or "-",
        "; ".join(reasons) or "-",
    )


def joined_totals(joined: Joined) -> str:
    """The engine in a few lines: products by fate, reasons, layers."""
    pieces = [piece for weight in joined.weights for piece in weight.pieces]
    verdicts = Counter(piece.verdict for piece in pieces)
    counts = ", ".join(f"{verdicts[v]} {v}" for v in ("chosen", "not chosen", "unknown"))
    lines = [f"2:4 products {len(pieces)}: {counts}"]
    lines += _counted(piece.reason for piece in pieces if piece.reason)
    if joined.layers is not None:
        lines.append(_layers(joined))
    return "\n".join(lines)


def _counted(reasons: Iterable[str]) -> list[str]:
    counts = Counter(reason.partition(":")[0] for reason in reasons)
    return [f"not sparse: {count} ({what})" for what, count in counts.most_common(_REASONS)]


def _layers(joined: Joined) -> str:
    dense = joined.dense_layers
    compared = "" if dense is None else f"; the dense model's engine has {dense}"
    return f"layers {joined.layers} of {joined.nodes} nodes{compared}"
