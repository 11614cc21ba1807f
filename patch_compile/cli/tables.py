"""Tables for people: the report, the inspection, the comparison."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from patch_compile.inspection import Inspection, WeightInspection
from patch_compile.page.names import alike, together
from patch_compile.report import Report, WeightReport
from patch_compile.whatif import WhatIf

if TYPE_CHECKING:
    from patch_compile.runtimes.comparison import OutputComparison
    from patch_compile.verification import Verification

__all__ = [
    "inspection_table",
    "plain_table",
    "report_table",
    "tile_map",
    "totals",
    "verification_table",
    "what_if_notes",
    "what_if_table",
]

# Longer reports show the beginning.
_ROWS = 40
_REASONS = 6


def plain_table(title: str, *columns: str, right: int) -> Table:
    """A plain table whose last `right` columns hold numbers."""
    table = Table(title=title, box=None, title_justify="left", pad_edge=False)
    for index, column in enumerate(columns):
        numeric = index >= len(columns) - right
        table.add_column(column, justify="right" if numeric else "left", no_wrap=numeric)
    return table


def report_table(report: Report) -> Table:
    """One row a weight: its mask, the form it took and what that keeps."""
    table = plain_table(
        "Weights",
        *("weight", "lowering", "tiles"),
        *("N x K", "sparsity", "2:4 tiles", "pieces", "MACs kept"),
        right=5,
    )
    for weight in report.weights[:_ROWS]:
        table.add_row(*_report_row(weight))
    if len(report.weights) > _ROWS:
        table.add_row(f"… {len(report.weights) - _ROWS} more, in the report by --json")
    return table


def _report_row(weight: WeightReport) -> tuple[str, ...]:
    return (
        " + ".join(weight.masks),
        _form(weight),
        weight.geometry,
        f"{weight.shape[0]} x {weight.shape[1]}",
        f"{weight.sparsity:.1%}",
        f"{weight.sparse_tile_share:.1%}",
        f"{len(weight.pieces)} ({weight.eligible} 2:4)",
        f"{weight.macs_kept / weight.macs:.1%}",
    )


def _form(weight: WeightReport) -> str:
    joined = weight.group not in (None, weight.lowering)
    return f"{weight.lowering}+{weight.group}" if joined else weight.lowering


def totals(report: Report) -> str:
    """The report in a few lines."""
    total = report.totals
    forms = ", ".join(f"{count} {name}" for name, count in total["lowerings"].items())
    lines = [
        f"{total['weights']} weights: {forms or 'none'}",
        (
            f"sparsity {total['sparsity']:.2%}, multiply-adds kept {total['macs_kept']:.2%} "
            "(a 2:4 piece counts half)"
        ),
        (
            f"pieces {total['pieces']}, of them eligible (2:4 by our own check) "
            f"{total['eligible']}; chosen by a GPU: {total['chosen']}"
        ),
    ]
    if report.groups:
        groups = ", ".join(f"{count} {name}" for name, count in total["groups"].items())
        lines.append(f"groups: {groups}; {total['products']} products in all")
    regrouped = report.made_by.get("regroup")
    if regrouped is not None:
        lines.append(
            f"regrouped: {regrouped['weights']} weights; predicted loss by score "
            f"{regrouped['loss_before']:.4g} before, {regrouped['loss_after']:.4g} after"
        )
    lines += _times(report)
    dense = [w.reason for w in report.weights if not w.eligible]
    lines += [f"kept dense: {count} ({reason})" for count, reason in _counted(dense)]
    left = _counted(list(report.left_alone.values()))
    lines += [f"left alone: {count} ({reason})" for count, reason in left]
    return "\n".join(lines)


def _times(report: Report) -> list[str]:
    if report.target is None:
        return []
    name, basis = report.target["name"], report.target["basis"]
    lines = [
        f"{time['tokens']:,} tokens on {name}: {time['before_us']:,.0f} us to "
        f"{time['after_us']:,.0f} us for the masked weights, "
        f"{time['before_us'] / time['after_us']:.2f}x, {basis}"
        for time in report.predicted
    ]
    if report.speedup is not None and len(report.predicted) > 1:
        shares = ", ".join(f"{tokens:,} at {share:.0%}" for tokens, share in report.profile)
        lines.append(f"all of it (tokens {shares} of the time): {report.speedup:.3f}x")
    lines.append(f"with {report.target['assumed']}")
    if not report.totals["eligible"]:
        lines.append(f"nothing pays on {name}: the model stays dense")
    return lines


def _counted(reasons: Sequence[str]) -> list[tuple[int, str]]:
    """Each reason with its count, the commonest first; percentages do not tell it apart."""
    groups: dict[str, list[str]] = {}
    for reason in reasons:
        groups.setdefault(alike(reason), []).append(reason)
    commonest = sorted(groups.values(), key=len, reverse=True)[:_REASONS]
    return [(len(group), together(group)) for group in commonest]


def inspection_table(inspection: Inspection) -> Table:
    """One row a weight: zeros, eligibility, share of 2:4 tiles."""
    table = plain_table(
        "Weights", "weight", "type", "2:4 whole", "N x K", "zeros", "2:4 tiles", right=3
    )
    for weight in inspection.weights:
        table.add_row(*_inspection_row(weight))
    return table


def _inspection_row(weight: WeightInspection) -> tuple[str, ...]:
    return (
        weight.parameter,
        weight.dtype,
        "yes" if weight.eligible else "no",
        f"{weight.shape[0]} x {weight.shape[1]}",
        f"{weight.zeros:.1%}",
        f"{weight.sparse_tiles.mean():.1%}",
    )


def what_if_table(rows: Sequence[WhatIf], *, masked: bool) -> Table:
    """A row a target, predicted speed-ups of the weights that could be cut by tokens."""
    counts = list(dict.fromkeys(row.tokens for row in rows))
    beyond = {row.tokens for row in rows if row.extrapolated}
    asked = "these masks" if masked else "2:4 wherever it is faster"
    table = plain_table(
        f"Speed-up of the linear layers by {asked}, predicted, by tokens a run",
        "target",
        *(f"{tokens:,}{'†' if tokens in beyond else ''}" for tokens in counts),
        right=len(counts),
    )
    for name in dict.fromkeys(row.target for row in rows):
        own = [row for row in rows if row.target == name]
        mark = "*" if own[0].estimate else ""
        table.add_row(name + mark, *(f"{row.speedup:.2f}x" for row in own))
    return table


def what_if_notes(rows: Sequence[WhatIf]) -> list[str]:
    """What the marks in the table of what-if mean, of those that are there."""
    notes = []
    if any(row.merged_us < row.dense_us for row in rows):
        least = min(row.speedup_over_merged / row.speedup for row in rows)
        notes.append(
            "dense: one product a weight; if the engine merges those of one X by itself, "
            f"gains are up to {1 - least:.0%} smaller (speedup_over_merged in the JSON)"
        )
    if any(row.estimate for row in rows):
        notes.append("* nothing was measured on this GPU: scaled from another by datasheets")
    if any(row.extrapolated for row in rows):
        notes.append("† so few or so many tokens were never measured: extrapolated")
    return notes


def tile_map(weight: WeightInspection) -> str:
    """The tile map of one weight, `#` for 2:4 and `.` for dense, N downwards."""
    rows: Any = weight.to_json()["tile_map"]
    return f"{weight.parameter}\n" + "\n".join(rows)


def verification_table(found: "Verification") -> Table:
    """One row an output: how far compiled is from masked, and what was allowed."""
    table = plain_table(
        found.compared,
        *("output", "type", "verdict"),
        *("max abs", "allowed", "rel. Frobenius", "allowed", "argmax equal"),
        right=5,
    )
    for label, output in _worst_of_caches(found.comparison.outputs):
        agreement = output.argmax_agreement
        table.add_row(
            label,
            output.dtype,
            "pass" if output.passed else "FAIL",
            f"{output.max_abs:.3g}",
            f"{output.atol:g}",
            f"{output.relative:.3g}",
            f"{output.rtol:g}",
            "-" if agreement is None else f"{agreement:.2%}",
        )
    return table


def _worst_of_caches(
    outputs: "Sequence[OutputComparison]",
) -> "list[tuple[str, OutputComparison]]":
    """Every output with its label; of caches that pass, of which decoders have many, one."""
    caches = [o for o in outputs if o.name.startswith("present.") and o.passed]
    others = [(o.name, o) for o in outputs if o not in caches]
    if len(caches) < 2:
        return [(o.name, o) for o in outputs]
    worst = max(caches, key=lambda output: output.relative)
    return [*others, (f"{worst.name} (the worst of {len(caches)} caches)", worst)]
