"""What anyone should know of a compile after ten seconds, in sentences and a few numbers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from patch_compile.page.commands import NEAR, promise
from patch_compile.page.formats import UNKNOWN, count, known, percent, ratio, total
from patch_compile.page.kernels import chosen
from patch_compile.page.measured import measured_figure, measured_gains, measurement
from patch_compile.page.times import Times, predicted

__all__ = [
    "Figure",
    "Stage",
    "asked",
    "figures",
    "sentences",
    "stages",
    "target",
    "title",
    "wished",
]

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Figure:
    """One number of the summary: what it is, its value, and what to read it against."""

    label: str
    value: str
    note: str


@dataclass(frozen=True)
class Stage:
    """One step from a wish to a fact: its word, what is known, and how it is known."""

    word: str
    value: str
    how: str


def title(report: Facts) -> str:
    """Returns what was compiled: the model the masks were made for, or the file's name."""
    name = report["made_by"].get("model") or report.get("inputs", {}).get("model")
    return str(name or "Compiled model")


def asked(report: Facts) -> str:
    """Returns the wish in one line: masks, geometry, sparsity, lowering."""
    made_by, recipe = report["made_by"], report["recipe"]
    geometries = sorted({str(weight["geometry"]) for weight in report["weights"]})
    parts = [
        f"masks by {made_by.get('method', 'an unknown method')}",
        f"tiles {' and '.join(geometries[:3]) or UNKNOWN}" + (" …" if geometries[3:] else ""),
        f"sparsity {wished(report)}",
        f"lowering {recipe['lowering']}",
        f"a cut must save {percent(recipe['min_gain'])} of a weight's cost",
    ]
    return "; ".join(parts)


def wished(report: Facts) -> str:
    """Returns what was asked of the masks, or else the sparsity that their file states."""
    made_by = report["made_by"]
    budget = promise(made_by)
    if budget is not None:
        return f"{ratio(budget['asked'])} on {budget.get('target', UNKNOWN)}"
    options = made_by.get("recipe", {})
    asked_for = options.get("sparsity") if isinstance(options, Mapping) else None
    made = made_by.get("sparsity")
    several = asked_for if isinstance(asked_for, list) else []
    if not known(made) and len(several) == 1:
        return percent(several[0])
    # Of masks that were cut since, none of these is what their file states.
    near = [wish for wish in several if known(made) and abs(wish - made) < NEAR]
    return percent(near[0] if near else made)


def sentences(report: Facts) -> list[str]:
    """Returns the summary in plain words."""
    totals, weights = report["totals"], report["weights"]
    cut = sum(weight["eligible"] > 0 for weight in weights)
    return [
        (
            f"{cut} of {len(weights)} masked weights hold 2:4 pieces. "
            f"{percent(totals['sparsity'])} of their {total(totals['parameters'])} parameters "
            f"are zero, and {percent(totals['macs_kept'])} of the multiply-adds remain, "
            "a 2:4 piece counting half."
        ),
        f"{_speed(predicted(weights), report)} {_kernels(chosen(report))}",
    ]


def _speed(times: list[Times], report: Facts) -> str:
    made = "; ".join(measured_gains(report))
    if not times:
        told = "No time was predicted"
        return f"{told}. Measured: {made}." if made else f"{told}, and none was measured."
    gains = ", ".join(f"{ratio(t.total.gain)} at {t.tokens:,} tokens" for t in times)
    whole = report.get("speedup")
    if whole is not None and len(times) > 1:
        gains += f"; {ratio(float(whole))} over all of them, by their share of the time"
    told = f"Predicted for {target(report)}"
    return f"{told}: {gains}. Measured: {made}." if made else f"{told}, not measured: {gains}."


def target(report: Facts) -> str:
    """Returns what times were predicted for."""
    return str((report.get("target") or {}).get("name", "an unnamed target"))


def _kernels(found: str) -> str:
    if found == UNKNOWN:
        return (
            "Whether a GPU runs the 2:4 products on sparse kernels is unknown: no build log "
            "and no engine inspector has said so."
        )
    return f"With a sparse kernel, by a build log or engine inspector: {found}."


def figures(report: Facts) -> list[Figure]:
    """Returns the numbers of the summary."""
    totals = report["totals"]
    eligible = totals["eligible"]
    dense = totals["pieces"] - eligible
    gains = [ratio(times.total.gain) for times in predicted(report["weights"])]
    return [
        Figure("Asked", wished(report), "sparsity of the masks"),
        Figure("Sparsity", percent(totals["sparsity"], 2), "zeros over all masked weights"),
        Figure(
            "Multiply-adds kept", percent(totals["macs_kept"], 2), "a 2:4 piece counts half"
        ),
        Figure(
            "Pieces",
            count(totals["pieces"]),
            f"{dense:,} dense, {eligible:,} 2:4{_joined(totals)}",
        ),
        Figure("Predicted speed-up", " ".join(gains) or UNKNOWN, _tokens(report)),
        Figure("Measured speed-up", *measured_figure(report)),
        Figure("Sparse kernels", chosen(report), "chosen, as far as a GPU told"),
    ]


def _joined(totals: Facts) -> str:
    """Pieces of weights that are lowered together share products."""
    products = totals.get("products", totals["pieces"])
    return "" if products == totals["pieces"] else f"; {products:,} products"


def _tokens(report: Facts) -> str:
    counts = [f"{times.tokens:,}" for times in predicted(report["weights"])]
    return f"at {' and '.join(counts)} tokens" if counts else "no target was given"


def stages(report: Facts) -> list[Stage]:
    """Returns the five stages from a request to a measurement, and what is known of each."""
    totals, engines = report["totals"], report["engines"]
    pieces = [piece for weight in report["weights"] for piece in weight["pieces"]]
    planned = sum(piece["role"] == "sparse24" for piece in pieces)
    return [
        Stage("requested", *_requested(engines)),
        Stage(
            "planned",
            f"{planned:,} of {len(pieces):,} pieces",
            "the plan gives them the role of a 2:4 product",
        ),
        Stage(
            "eligible",
            f"{totals['eligible']:,} of {len(pieces):,} pieces",
            "our own check of the stored bytes: at most 2 of 4 along the piece's K",
        ),
        Stage("built", *_built(engines)),
        Stage("chosen", chosen(report), _how_chosen(chosen(report))),
        Stage("measured", *measurement(report)),
    ]


def _requested(engines: Any) -> tuple[str, str]:
    if not engines:
        return "no engine built", "nobody has asked a builder for sparse kernels yet"
    wishes = sum(bool(engine["requested"]) for engine in engines)
    how = "SPARSE_WEIGHTS is a permission to the builder, not an order"
    return f"by {wishes} of {len(engines)} engines", how


def _built(engines: Any) -> tuple[str, str]:
    if not engines:
        return "no engine built", "patch-compile build adds its engines to this page"
    return f"{len(engines)}", "engines that a builder serialized; see below"


def _how_chosen(found: str) -> str:
    if found == UNKNOWN:
        return "no build log or engine inspector named a kernel; that is not zero"
    return "from a build log or an engine inspector"
