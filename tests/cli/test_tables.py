from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from patch_compile.cli import tables
from patch_compile.cli.console import out
from patch_compile.cli.engine_tables import engine_line
from patch_compile.inspection import Inspection, WeightInspection
from patch_compile.report import PieceReport, Report, WeightReport
from patch_compile.runtimes.comparison import Comparison, OutputComparison
from patch_compile.runtimes.engines import engine_result
from patch_compile.runtimes.evidence import Evidence
from patch_compile.verification import Verification


def _weight(
    name: str, lowering: str = "whole", reason: str = "every tile is sparse"
) -> WeightReport:
    sparse = lowering == "whole"
    return WeightReport(
        weight=name,
        masks=(f"{name}.q", f"{name}.k"),
        shape=(8, 16),
        dtype="float16",
        geometry="band:4",
        sparsity=0.5 if sparse else 0.0,
        sparse_tile_share=1.0 if sparse else 0.0,
        lowering=lowering,
        reason=reason,
        pieces=(PieceReport("sparse24" if sparse else "dense", (8, 16)),),
        macs=128,
        macs_kept=64.0 if sparse else 128.0,
        bound_by="name",
        digest="match",
        eligible=int(sparse),
    )


def _report(weights: Sequence[WeightReport], left_alone: dict[str, str]) -> Report:
    return Report(tuple(weights), left_alone, {}, {}, {})


def _lines(table: object) -> list[str]:
    console = Console(width=160)
    with console.capture() as capture:
        console.print(table)
    return capture.get().splitlines()


def test_a_row_tells_masks_form_and_what_is_kept() -> None:
    row = _lines(tables.report_table(_report([_weight("w")], {})))[2]
    assert row.split("  ")[0] == "w.q + w.k"
    for cell in ("whole", "band:4", "8 x 16", "50.0%", "100.0%", "1 (1 2:4)"):
        assert cell in row


def test_a_long_report_shows_its_beginning_and_says_so() -> None:
    weights = [_weight(f"w{i:02}") for i in range(43)]
    lines = _lines(tables.report_table(_report(weights, {})))
    assert "w39" in lines[-2]
    assert lines[-1].strip() == "… 3 more, in the report by --json"


def test_totals_count_equal_reasons_once() -> None:
    kept = [_weight(f"w{i}", "dense", f"saves {i}.5% only") for i in range(3)]
    left = {"x": "in a loop", "y": "in a loop", "z": "not constant"}
    lines = tables.totals(_report([*kept, _weight("w")], left)).splitlines()
    assert lines == [
        "4 weights: 3 dense, 1 whole",
        "sparsity 12.50%, multiply-adds kept 87.50% (a 2:4 piece counts half)",
        "pieces 4, of them eligible (2:4 by our own check) 1; chosen by a GPU: unknown",
        "kept dense: 3 (saves 0.5% to 2.5% only)",
        "left alone: 2 (in a loop)",
        "left alone: 1 (not constant)",
    ]


def test_totals_of_no_weights_are_no_numbers_of_none() -> None:
    assert tables.totals(_report([], {})).startswith("0 weights: none\nsparsity 0.00%")


def _inspected(name: str) -> WeightInspection:
    tiles = np.array([[True, False], [False, False]])
    return WeightInspection(name, name, (8, 16), "float", 0.125, False, tiles)


def test_a_tile_map_has_one_mark_a_tile() -> None:
    assert tables.tile_map(_inspected("w")) == "w\n#.\n.."


def test_a_name_is_never_taken_for_markup() -> None:
    name = "layer[/bold][red]:smile:"
    with out.capture() as capture:
        out.print(tables.inspection_table(Inspection((_inspected(name),), {})))
    assert name in capture.get()


def test_caches_that_pass_are_one_row() -> None:
    """A decoder has two outputs a layer beside its logits."""

    def output(name: str, relative: float, rtol: float = 1e-4) -> OutputComparison:
        return OutputComparison(name, "float32", (1, 2), 0.0, relative, None, 1.0, rtol)

    outputs = (
        output("logits", 3e-5),
        *(output(f"present.{i}.key", i * 1e-6) for i in range(30)),
        output("present.30.key", 1.0),
    )
    found = Verification(Comparison(outputs), {}, 0, {})
    with out.capture() as printed:
        out.print(tables.verification_table(found))
    names = [line.split("  ")[0] for line in printed.get().splitlines()[2:]]
    assert names == ["logits", "present.30.key", "present.29.key (the worst of 30 caches)"]


@pytest.mark.parametrize(
    ("sm", "chosen"), [(75, "none, SM 75 has no sparse tensor cores"), (80, "unknown")]
)
def test_a_gpu_without_sparse_tensor_cores_chose_none(sm: int, chosen: str) -> None:
    engine, log = Path("m.engine"), Path("m.log")
    result = engine_result(
        engine, Evidence("trtexec"), size=1, seconds=1.0, sm=(sm,), log=log, digest=""
    )
    assert f"sparse kernels requested, chosen: {chosen}; GPU" in engine_line(result)
