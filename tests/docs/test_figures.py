"""Drawings of the site: of every lowering there is, and legible."""

import re
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import pytest

from patch_compile.passes.pipeline import LOWERING_RULES
from scripts.docs.curves import perplexity_curves
from scripts.docs.drawing import Box, Graph, draw_graph
from scripts.docs.figures import CASES, figure

PAGE = Path(__file__).parent.parent.parent / "docs" / "explanation" / "lowerings.md"
# As wide as the column of text on a phone of 360 pixels, at the least size of 10 pixels that
# the smallest letters, 11.5, may shrink to.
_WIDEST = 330 * 11.5 / 10


def test_every_lowering_has_a_section_and_a_drawing() -> None:
    lowerings = {rule.lowering for rule in LOWERING_RULES}
    assert {case.lowering or name for name, case in CASES.items()} == lowerings
    text = PAGE.read_text("utf-8")
    assert set(re.findall(r'figure\("([a-z-]+)"\)', text)) == set(CASES)
    assert lowerings <= set(re.findall(r"^## ([a-z-]+)$", text, re.MULTILINE))


def graphs(lowering: str) -> list[ElementTree.Element]:
    html = figure(lowering)
    found = re.findall(r'<svg class="pc-graph".*?</svg>', html, re.DOTALL)
    assert len(found) == 2
    return [ElementTree.fromstring(svg) for svg in found]


@pytest.mark.parametrize("lowering", CASES)
def test_boxes_lie_apart_and_inside(lowering: str) -> None:
    for svg in graphs(lowering):
        _, _, width, height = map(float, svg.attrib["viewBox"].split())
        boxes = [
            tuple(float(rect.attrib[key]) for key in ("x", "y", "width", "height"))
            for rect in svg.iter("rect")
        ]
        assert all(x >= 0 and y >= 0 for x, y, _, _ in boxes)
        assert all(x + w <= width and y + h <= height for x, y, w, h in boxes)
        for (ax, ay, aw, ah), (bx, by, bw, bh) in combinations(boxes, 2):
            assert ax + aw <= bx or bx + bw <= ax or ay + ah <= by or by + bh <= ay


@pytest.mark.parametrize("lowering", CASES)
def test_a_phone_shows_letters_that_can_be_read(lowering: str) -> None:
    widths = [float(svg.attrib["width"]) for svg in graphs(lowering)]
    assert max(widths) <= _WIDEST


def test_a_long_edge_bends_around_what_lies_between() -> None:
    boxes = [
        Box("x", ("x",), "end"),
        Box("a", ("a",), "op", ("x",)),
        Box("b", ("b",), "op", ("a", "x")),
    ]
    graph = Graph({box.name: box for box in boxes})
    assert [set(layer) for layer in graph.layers] == [{"x"}, {"a", "x>b@1"}, {"b"}]
    assert ["x", "x>b@1", "b"] in graph.chains
    assert draw_graph(boxes, "t & u").count("<path") == 3
    assert 'aria-label="t &amp; u"' in draw_graph(boxes, "t & u")


def test_curves_are_of_the_rows_of_their_runs_and_logarithmic() -> None:
    rows = {
        "dense": {"perplexity": 25.0},
        "two 45%": {"run": "two", "asked": 0.45, "perplexity": 100.0},
        "two 25%": {"run": "two", "asked": 0.25, "perplexity": 50.0},
        "one": {"run": "one & only", "asked": 0.35, "perplexity": 50.0},
        "other": {"run": "other", "asked": 0.45, "perplexity": 900.0},
    }
    drawn = ElementTree.fromstring(perplexity_curves(rows, ["two", "one & only"]))
    dots = [(float(d.attrib["cx"]), float(d.attrib["cy"])) for d in drawn.iter("circle")]
    (left, middle), (right, top), (between, same) = dots
    floor = next(p for p in drawn.iter("path") if p.attrib["class"] == "pc-floor")
    bottom = float(floor.attrib["d"].split("H")[0].split()[1])
    # Twice the perplexity is the same way up everywhere.
    assert middle - top == pytest.approx(bottom - middle, abs=0.2)
    assert same == middle
    assert between == pytest.approx((left + right) / 2)
    assert [span[0].tail for span in drawn.iter("span")] == ["two", "one & only"]
    with pytest.raises(KeyError, match="unknown run"):
        perplexity_curves(rows, ["unknown run"])
