"""Measured times stand beside predicted ones, and what was not measured is called that."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from patch_compile.page.render import page_of
from tests.page.reports import llama_names, report_text

MEASURED: dict[str, Any] = {
    "runtime": "trtexec",
    "version": "10.13.0",
    "device": "NVIDIA A100",
    "batch": 1,
    "tokens": 128,
    "rounds": 10,
    "confidence": 0.95,
    "dense_seconds": 0.004,
    "compiled_seconds": 0.0032,
    "ratio": {"median": 0.8, "low": 0.75, "high": 0.8333333333},
    "noise": 0.021,
    "verdict": "faster",
    "cast": False,
    "baselines": {},
}
ROW = [
    "128",
    "1.25x (1.20x to 1.33x)",
    "faster, noise 2.1%",
    "4 ms",
    "3.2 ms",
    "trtexec 10.13.0, NVIDIA A100",
]


class _Rows(HTMLParser):
    """The cells of every row of a table."""

    def __init__(self, page: str, table: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self._table, self._inside, self._cell = table, False, False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self._inside = self._table in (dict(attrs).get("class") or "").split()
        if tag == "tr" and self._inside:
            self.rows.append([])
        if tag in ("td", "th") and self._inside:
            self._cell = True
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data: str) -> None:
        if self._cell and self._inside:
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    text = report_text(tmp_path_factory.mktemp("report"), llama_names(7))
    found: dict[str, Any] = json.loads(text)
    return found


def _drawn(report: dict[str, Any], *, tokens: tuple[int, ...], measured: Any) -> str:
    entries = [{"tokens": t, "before_us": 90.0, "after_us": 75.0} for t in tokens]
    weights = [{**weight, "predicted": entries} for weight in report["weights"]]
    target = {"name": "a100-fp16", "basis": "a table"} if tokens else None
    return page_of(
        json.dumps({**report, "weights": weights, "target": target, "measured": measured})
    )


def _words(page: str) -> str:
    return " ".join(page.replace("<", " <").split())


def test_a_measurement_stands_beside_its_prediction(report: dict[str, Any]) -> None:
    page = _drawn(report, tokens=(16, 128), measured=[MEASURED])
    _, first, second = _Rows(page, "measured").rows
    assert first == [
        "16",
        "1.20x (a100-fp16)",
        "not measured",
        "-",
        "-",
        "-",
        "not measured",
    ]
    assert second == [ROW[0], "1.20x (a100-fp16)", *ROW[1:]]
    told = "Measured: 1.25x (1.20x to 1.33x) at 128 tokens on NVIDIA A100, faster, noise 2.1%."
    assert told in _words(page)
    assert (
        "at 128 tokens</td><td>by trtexec on NVIDIA A100: dense and compiled in turns" in page
    )


def test_a_measurement_alone_has_no_prediction(report: dict[str, Any]) -> None:
    page = _drawn(report, tokens=(), measured=[MEASURED])
    _, row = _Rows(page, "measured").rows
    assert row == [ROW[0], "unknown", *ROW[1:]]
    assert "no time was predicted." in _words(page)
    assert "none was measured" not in page


def test_without_either_the_page_says_so(report: dict[str, Any]) -> None:
    page = page_of(json.dumps(report))
    assert _Rows(page, "measured").rows == []
    assert "No time was predicted, and none was measured." in page
    assert '"measured":"not measured"' in page


def test_a_batch_stands_beside_what_was_predicted_for_all_its_tokens(
    report: dict[str, Any],
) -> None:
    page = _drawn(report, tokens=(128, 512), measured=[{**MEASURED, "batch": 4}])
    _, alone, together = _Rows(page, "measured").rows
    assert (alone[0], alone[2]) == ("128", "not measured")
    assert together[:3] == ["512", "1.20x (a100-fp16)", ROW[1]]


def test_machines_stand_apart_and_casts_are_told(report: dict[str, Any]) -> None:
    other = {**MEASURED, "device": "a CPU", "batch": 4, "cast": True, "noise": None}
    page = _drawn(report, tokens=(), measured=[MEASURED, other])
    _, first, second = _Rows(page, "measured").rows
    assert first == [ROW[0], "unknown", *ROW[1:]]
    assert second[3] == "the noise is unknown"
    assert second[6] == "trtexec 10.13.0, a CPU, 4 sequences of 128, which was cast"


def test_device_names_cannot_leave_their_cell(report: dict[str, Any]) -> None:
    page = _drawn(report, tokens=(), measured=[{**MEASURED, "device": "<script>x()</script>"}])
    assert "<script>x()" not in page


def test_an_older_report_is_drawn(report: dict[str, Any], tmp_path: Path) -> None:
    older = {name: value for name, value in report.items() if name != "measured"}
    assert "not measured" in page_of(json.dumps(older))


def test_what_keeps_its_type_in_a_quantised_model_is_listed(report: dict[str, Any]) -> None:
    facts = {
        "type": "int8",
        "products": 7,
        "kept": {"layers.1.down_proj.weight": "outliers: <b>"},
        "pieces": 5,
        "eligible": 4,
        "quantized_outputs": 3,
    }
    page = page_of(json.dumps({**report, "quantized": facts}))
    assert "Quantised to int8" in page
    assert "7 products, 5 of them pieces; 2:4 in their stored bytes 4" in page
    assert "outliers: &lt;b&gt;" in page
    # As the first release wrote it.
    del facts["kept"]
    assert "keep their type" not in page_of(json.dumps({**report, "quantized": facts}))
