"""The page says what the report says, whatever the names, and asks nobody for anything."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from patch_compile.errors import ModelError
from patch_compile.page.render import page_of
from tests.page.reports import (
    ENGINE,
    HOSTILE,
    VERIFICATION,
    llama_names,
    report_text,
    with_facts,
)
from tests.support import said

# Elements that have no end, by the HTML standard.
_VOID = {"meta", "input", "img", "br", "hr", "link", "wbr"}


class _Reader(HTMLParser):
    """Elements with their attributes and texts, after a check that every end has its start."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "wbr":
            self.text.append(" ")
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "script" in self.open or "style" in self.open:
            return
        self.text.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for found, attributes in self.tags if found == tag]

    def words(self) -> str:
        return " ".join("".join(self.text).split())


def _row(page: str, first: str) -> list[str]:
    """The one table row that begins so."""
    rows = [[" ".join(cell.split()) for cell in row] for row in _Reader(page).rows]
    (found,) = [row for row in rows if row and row[0] == first]
    return found


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    return report_text(tmp_path_factory.mktemp("model"), llama_names(14))


@pytest.fixture(scope="module")
def page(text: str) -> str:
    return page_of(text)


def test_every_weight_has_its_row(text: str, page: str) -> None:
    report = json.loads(text)
    for weight in report["weights"]:
        row = _row(page, weight["weight"])
        assert row[1:3] == [weight["lowering"], weight["geometry"]]
        assert row[3] == "32 \N{MULTIPLICATION SIGN} 48"
        assert row[4:6] == [f"{weight['sparsity']:.1%}", f"{weight['sparse_tile_share']:.1%}"]
        assert row[7] == f"{weight['macs_kept'] / weight['macs']:.1%}"
        assert row[8] == weight["reason"]
    assert {weight["lowering"] for weight in report["weights"]} == {
        "whole",
        "columns",
        "cover",
        # Every tile is dense, and it is merged with others.
        "dense",
    }


def test_the_summary_has_the_totals(text: str, page: str) -> None:
    totals = json.loads(text)["totals"]
    words = _Reader(page).words()
    for number in (
        f"{totals['sparsity']:.2%}",
        f"{totals['macs_kept']:.2%}",
        f"{totals['pieces'] - totals['eligible']} dense, {totals['eligible']} 2:4",
    ):
        assert number in words


def test_what_nobody_measured_is_unknown_and_never_zero(page: str) -> None:
    assert _row(page, "chosen")[1:] == [
        "unknown",
        "no build log or engine inspector named a kernel; that is not zero",
    ]
    assert _row(page, "measured")[1] == "not measured"
    assert _row(page, "requested")[1] == "no engine built"
    words = _Reader(page).words()
    assert "Predicted speed-up unknown" in words
    assert "Sparse kernels unknown" in words


def test_reasons_are_counted_without_their_numbers(text: str) -> None:
    report = json.loads(text)
    untouched = [w for w in report["weights"] if w["reason"] == "every tile is dense"]
    area = sum(w["macs"] for w in report["weights"])
    share = f"{sum(w['macs'] for w in untouched) / area:.1%}"
    assert _row(page_of(text), "every tile is dense") == [
        "every tile is dense",
        str(len(untouched)),
        share,
    ]
    for weight, saved in zip(untouched, ("1.5%", "2.5%"), strict=False):
        weight["reason"] = f"best cut saves {saved}, below 5.0%"
    page = page_of(json.dumps(report))
    assert _row(page, "best cut saves 1.5% to 2.5%, below 5.0%")[1] == "2"


def test_weights_left_alone_are_listed_with_their_reason(text: str, page: str) -> None:
    (name,) = json.loads(text)["left_alone"]
    assert f"1 · no mask names this weight {name}" in _Reader(page).words()


def test_equal_reports_give_equal_pages(text: str, page: str) -> None:
    assert page_of(text) == page


@pytest.mark.parametrize("place", ["weight", "left_alone", "reason", "recipe", "version"])
def test_no_name_is_markup(text: str, place: str) -> None:
    report = json.loads(text)
    if place == "weight":
        report["weights"][0]["masks"] = [HOSTILE]
        report["weights"][0]["weight"] = HOSTILE
    elif place == "reason":
        report["weights"][0] |= dict.fromkeys(("reason", "lowering", "geometry"), HOSTILE)
        report["weights"][0]["eligible"] = 0
    elif place == "left_alone":
        report["left_alone"] = {HOSTILE: HOSTILE}
    elif place == "recipe":
        report["recipe"]["tile"] = report["made_by"]["model"] = HOSTILE
        report["made_by"]["recipe"] = {HOSTILE: HOSTILE}
    else:
        report["versions"] = {"patch-compile": HOSTILE}
    page = page_of(json.dumps(report))
    reader = _Reader(page)
    assert HOSTILE in re.sub(r"\s+", " ", "".join(reader.text))
    assert "alert(1)" not in "".join(f"{k}{v}" for k, v in reader.named("img"))
    assert len(reader.named("script")) == 2
    assert reader.named("img") == []
    assert "49" not in re.findall(r"amp;(\S*)", reader.words())


def test_the_policy_allows_this_script_and_style_alone(page: str) -> None:
    (policy,) = [
        meta["content"]
        for meta in _Reader(page).named("meta")
        if meta.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert set(rules) == {"default-src", "style-src", "script-src"}
    assert all(
        re.fullmatch(r"'sha256-[\w+/]{43}='", rules[f"{x}-src"]) for x in ("style", "script")
    )


def test_nothing_on_the_page_leads_out_of_it(page: str) -> None:
    reader = _Reader(page)
    links = [
        value
        for _, attributes in reader.tags
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "data", "action", "poster")
    ]
    assert all(str(link).startswith("#") for link in links)
    assert {str(link)[1:] for link in links} <= {tag.get("id") for _, tag in reader.tags}
    assert not re.search(r"(https?:)?//\w+\.\w|url\(|@import", _source("css") + page)


def _source(kind: str) -> str:
    folder = Path(__file__).parents[2] / "patch_compile" / "page" / "templates"
    return (folder / f"report.{kind}").read_text("utf-8")


def test_the_script_gets_the_facts_of_the_report(text: str, page: str) -> None:
    found = re.search(r'<script type="application/json" id="facts">(.*?)</script>', page)
    assert found is not None
    facts = json.loads(found[1])
    for ours, theirs in zip(facts["weights"], json.loads(text)["weights"], strict=True):
        assert {key: ours[key] for key in theirs} == theirs


def test_what_later_verbs_add_is_on_the_page(text: str) -> None:
    page = page_of(with_facts(text, engines=[ENGINE], verification=VERIFICATION))
    assert _row(page, "compiled.sm86.engine") == [
        "compiled.sm86.engine",
        "SM 86",
        "1.2.3",
        "yes",
        "9",
        "unknown",
    ]
    assert _row(page, "requested")[1] == "by 1 of 1 engines"
    assert _row(page, "logits")[2:] == ["FAIL", "nan", "0.5", "0.00123", "0.02", "unknown"]
    assert _row(page, "12.0071") == ["12.0071", "19.0464", "inf"]
    words = _Reader(page).words()
    assert "OVER TOLERANCE" in words
    assert "2,044 predictions of held-out.txt" in words
    assert "x.weight (why not)" in words


def test_a_kernel_that_an_engine_named_is_counted_and_told_of_its_weight(text: str) -> None:
    weight = json.loads(text)["weights"][0]
    piece = {"verdict": "chosen", "tactic": "sm80_xmma_sparse_gemm", "reason": ""}
    told = {"weight": "+".join(weight["masks"]), "pieces": [piece]}
    engine = {**ENGINE, "engine": "a.engine", "chosen": 3, "weights": [told]}
    page = page_of(with_facts(text, engines=[engine]))
    told_of = "from a build log or an engine inspector"
    assert _row(page, "chosen")[1:] == ["3 of 9 products", told_of]
    assert '"told":["a.engine: chosen, kernel sm80_xmma_sparse_gemm"]' in page
    assert "With a sparse kernel, by a build log or engine inspector: 3 of 9 products." in page


def test_a_merged_product_is_told_of_each_of_its_weights(text: str) -> None:
    first, second = (weight["masks"] for weight in json.loads(text)["weights"][:2])
    piece = {"verdict": "chosen", "tactic": "sm80_xmma_sparse_gemm", "reason": ""}
    told = {"weight": "+".join([*second, "other", *first]), "pieces": [piece]}
    engine = {**ENGINE, "engine": "a.engine", "chosen": 1, "weights": [told]}
    page = page_of(with_facts(text, engines=[engine]))
    assert page.count('"told":["a.engine: chosen, kernel sm80_xmma_sparse_gemm"]') == 2


@pytest.mark.parametrize(
    ("facts", "value"),
    [
        ({"sparsity": 0.3, "recipe": {"sparsity": [0.4]}}, "30.0%"),
        ({"sparsity": 0.2497, "recipe": {"sparsity": [0.25, 0.4]}}, "25.0%"),
        ({"recipe": {"sparsity": [0.4]}}, "40.0%"),
        ({"sparsity": 0.3, "budget": {"saved": 0.1, "loss": 0.2, "gap": 0.0}}, "30.0%"),
        (
            {"sparsity": 0.41, "budget": {"asked": 1.1, "target": "a100-bf16"}},
            "1.10x on a100-bf16",
        ),
    ],
)
def test_the_wish_is_what_was_asked_of_these_masks(
    text: str, facts: dict[str, Any], value: str
) -> None:
    report = {**json.loads(text), "made_by": facts}
    assert f"Asked {value}" in _Reader(page_of(json.dumps(report))).words()


def _predict(report: dict[str, Any], entry: dict[str, Any], weights: int) -> None:
    for weight in report["weights"][:weights]:
        weight["predicted"] = [entry]


def test_predicted_times_add_up(text: str) -> None:
    report = json.loads(text)
    parts = {"products": 60.0, "moves": 20.0}
    entry = {"tokens": 2048, "before_us": 100.0, "after_us": 80.0, "parts": parts}
    _predict(report, entry, 7)
    report["target"] = {"name": "a100 bf16", "basis": "a table of products"}
    page = page_of(json.dumps(report))
    words = _Reader(page).words()
    assert "2,048 tokens, a100 bf16: 700.0 µs before, 560.0 µs after, 1.25x" in words
    assert "Predicted for a100 bf16, not measured: 1.25x at 2,048 tokens." in words
    assert "not measured; the prediction rests on a table of products." in words
    assert f"{len(report['weights']) - 7} weights have no prediction" in words
    assert _row(page, "moves") == ["moves", "140.0 µs", "25.0%"]
    assert "No target GPU was given" not in words
    first, last = (report["weights"][index]["weight"] for index in (0, -1))
    assert _row(page, first)[8:] == ["1.25x", report["weights"][0]["reason"], ""]
    assert _row(page, last)[8] == "unknown"


def test_a_prediction_of_a_slower_model_says_so(text: str) -> None:
    report = json.loads(text)
    _predict(report, {"tokens": 16, "before_us": 80.0, "after_us": 100.0}, 99)
    page = page_of(json.dumps(report))
    assert _row(page, report["weights"][0]["weight"])[8] == "0.80x"
    assert "1.30 ms after, 0.80x slower" in _Reader(page).words()
    assert "Predicted for an unnamed target, not measured: 0.80x at 16 tokens" in page


def test_weights_lowered_together_are_listed(text: str) -> None:
    names = [weight["weight"] for weight in json.loads(text)["weights"][:3]]
    group = {"lowering": "merge", "weights": names, "products": [{}, {}], "reason": "one X"}
    totals = {**json.loads(text)["totals"], "products": 7}
    words = _Reader(page_of(with_facts(text, groups=[group], totals=totals))).words()
    assert f"1 · merge {', '.join(names)}: 2 products; one X" in words
    assert "; 7 products" in words


@pytest.mark.parametrize(
    "damage",
    [
        "{",
        "[]",
        "{}",
        '{"version": 2}',
        '{"version": 1, "weights": 3}',
        '{"version": 1, "weights": [{}], "totals": {}, "recipe": {}, "made_by": {}}',
    ],
)
def test_what_is_no_report_is_refused_in_one_line(damage: str) -> None:
    with pytest.raises(ModelError) as caught:
        page_of(damage)
    assert "report.json | cannot be drawn: " in said(caught)


def test_a_report_of_the_first_release_is_drawn(text: str) -> None:
    """It had no tile maps, names no inputs and nobody could verify into it."""
    report = json.loads(text)
    del report["inputs"]
    for weight in report["weights"]:
        del weight["tile_map"]
    page = page_of(json.dumps(report))
    assert "<canvas width" not in page
    assert "patch-compile MODEL.onnx --tiles MASKS.json -o out" in _Reader(page).words()


def test_a_report_without_weights_is_drawn(text: str) -> None:
    report = json.loads(text)
    report["weights"] = []
    report["totals"] |= {"weights": 0, "pieces": 0, "eligible": 0, "lowerings": {}}
    assert (
        "0 of 0 masked weights hold 2:4 pieces" in _Reader(page_of(json.dumps(report))).words()
    )
