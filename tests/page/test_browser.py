"""The page in a real browser: sorting, filtering, maps, widths."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from patch_compile.page.render import page_of
from tests.page.browser import Page, chromium, open_page
from tests.page.reports import (
    ENGINE,
    HOSTILE,
    VERIFICATION,
    llama_names,
    report_text,
    with_facts,
)

pytestmark = pytest.mark.skipif(
    chromium() is None, reason="no Chromium on the PATH, as of `apt-get install chromium`"
)

PHONE, DESKTOP = 390, 1440
BLANK = "0,0,0,0"
NAMES = (
    "[...document.querySelectorAll('table.weights tbody:not([hidden]) .more')]"
    ".map(b => b.textContent)"
)
# Colours that a canvas holds, as many as there are.
COLOURS = """(canvas => {
  const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
  const seen = new Set();
  for (let i = 0; i < data.length; i += 4) seen.add(data.slice(i, i + 4).join());
  return [...seen];
})"""


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with open_page() as page:
        yield page


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """Reports of 7 and of 400 linears; every fifth kind has a tile map in free tiles."""
    folder = tmp_path_factory.mktemp("models")
    return {count: report_text(folder, llama_names(count)) for count in (7, 400)}


@pytest.fixture
def show(page: Page, texts: dict[int, str], tmp_path: Path) -> "Show":
    return Show(page, texts, tmp_path)


class Show:
    """Draws a report and opens it."""

    def __init__(self, page: Page, texts: dict[int, str], folder: Path) -> None:
        self.page, self.texts, self.folder = page, texts, folder

    def __call__(self, text: str, width: int = DESKTOP, *, dark: bool = False) -> Page:
        path = self.folder / "report.html"
        path.write_text(page_of(text), "utf-8")
        self.page.complaints.clear()
        self.page.look(width, dark=dark)
        self.page.open(path)
        return self.page


def _click_heading(page: Page, name: str) -> list[str]:
    page.run(f"document.querySelector('thead .{name} button').click()")
    found: list[str] = page.run(NAMES)
    return found


def _until(page: Page, script: str, *, unlike: str) -> str:
    """Asks until the answer is another one: drawing follows when the browser has time."""
    deadline = time.monotonic() + 20
    while (found := str(page.run(script))) == unlike:
        assert time.monotonic() < deadline, f"still {found}"
        _settle(page)
    return found


def _settle(page: Page) -> None:
    page.run("new Promise(r => requestAnimationFrame(() => setTimeout(r, 60)))")


@pytest.mark.parametrize("count", [7, 400])
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [PHONE, 700, 1080, DESKTOP])
def test_nothing_overflows_complains_or_is_fetched(
    show: Show, count: int, width: int, dark: bool
) -> None:
    text = with_facts(show.texts[count], engines=[ENGINE] * 2, verification=VERIFICATION)
    report = json.loads(text)
    for weight in report["weights"][:3]:
        weight["predicted"] = [
            {"tokens": n, "before_us": 1e5, "after_us": 9e4} for n in (1, 64)
        ]
    page = show(json.dumps(report), width, dark=dark)
    page.run("document.querySelectorAll('.more').forEach((b, i) => i < 8 && b.click())")
    page.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    _settle(page)
    assert page.run("document.documentElement.scrollWidth") == width
    # What is cut off at the side is as bad as a scroll bar.
    wide = page.run(
        "[...document.querySelectorAll('main *')]"
        ".filter(e => !e.closest('.scroll, pre, thead'))"
        ".filter(e => e.getBoundingClientRect().right > innerWidth + 1)"
        ".map(e => e.outerHTML.slice(0, 80))"
    )
    assert wide == []
    assert page.complaints == []


def test_columns_sort_both_ways_and_back(show: Show) -> None:
    weights = json.loads(show.texts[400])["weights"]
    page = show(show.texts[400])
    before = page.run(NAMES)
    assert before == [weight["weight"] for weight in weights]
    by_kept = sorted(weights, key=lambda w: w["macs_kept"] / w["macs"])
    assert _click_heading(page, "kept") == [weight["weight"] for weight in by_kept]
    assert page.run("document.querySelector('thead .kept').ariaSort") == "ascending"
    fallen = sorted(weights, key=lambda w: -w["macs_kept"] / w["macs"])
    assert _click_heading(page, "kept") == [weight["weight"] for weight in fallen]
    assert page.run("document.querySelector('thead .kept').ariaSort") == "descending"
    assert _click_heading(page, "kept") == before
    assert page.run("document.querySelectorAll('thead [aria-sort]').length") == 0


def test_what_is_unknown_sorts_last_either_way(show: Show) -> None:
    report = json.loads(show.texts[400])
    names = [weight["weight"] for weight in report["weights"]]
    for weight, after in zip(report["weights"][5:8], (50.0, 80.0, 120.0), strict=True):
        weight["predicted"] = [{"tokens": 16, "before_us": 100.0, "after_us": after}]
    page = show(json.dumps(report))
    rest = names[:5] + names[8:]
    assert _click_heading(page, "gain0") == [names[7], names[6], names[5], *rest]
    assert _click_heading(page, "gain0") == [names[5], names[6], names[7], *rest]


def test_names_sort_as_people_count(show: Show) -> None:
    names = _click_heading(show(show.texts[400]), "name")
    layers = [int(name.split(".")[2]) for name in names]
    assert layers == sorted(layers)
    assert names != json.loads(show.texts[400])["weights"]


def test_filters_work_together(show: Show) -> None:
    weights = json.loads(show.texts[400])["weights"]
    page = show(show.texts[400])

    def choose(name: str, value: str) -> list[str]:
        page.run(
            f"(e => {{ e.value = {json.dumps(value)};"
            " e.dispatchEvent(new Event('input', {bubbles: true})); })"
            f"(document.querySelector('.filters').elements['{name}'])"
        )
        found: list[str] = page.run(NAMES)
        return found

    wanted = [w for w in weights if ".1" in w["weight"] and "mlp" in w["weight"]]
    assert choose("name", "mlp .1") == [w["weight"] for w in wanted]
    wanted = [w for w in wanted if w["lowering"] == "columns"]
    assert len(wanted) > 0
    assert choose("lowering", "columns") == [w["weight"] for w in wanted]
    shown = "document.querySelector('.filters output').value"
    assert page.run(shown) == f"{len(wanted)} of {len(weights)} weights"
    assert choose("geometry", "weight") == []
    assert page.run("document.querySelector('.nothing').hidden") is False
    page.run("document.querySelector('.nothing button').click()")
    _settle(page)
    assert len(page.run(NAMES)) == len(weights)
    assert page.run("document.querySelector('.nothing').hidden") is True
    assert choose("reason", "every tile is dense") == [
        w["weight"] for w in weights if w["reason"] == "every tile is dense"
    ]


def test_maps_show_what_a_dense_piece_costs(show: Show) -> None:
    """8x8 tiles: a dense band, and a dense strip that takes 2:4 tiles along."""
    weights = json.loads(show.texts[7])["weights"]
    index = next(i for i, w in enumerate(weights) if w["lowering"] == "cover")
    page = show(show.texts[7])
    page.run(f"document.querySelector('#w{index} .more').click()")
    detail = f"document.querySelector('#w{index} .detail canvas')"
    assert page.run(f"{detail}.ariaLabel") == (
        f"{weights[index]['weight']}, tiles: 9 dense; 15 2:4, in a 2:4 piece"
    )
    # Two kinds of tiles, and the lines between them.
    assert len(page.run(f"{COLOURS}({detail})")) == 3
    words = page.run(f"document.querySelector('#w{index} dl').textContent")
    assert weights[index]["reason"] in words
    assert "chosenunknown" in words
    page.run(f"document.querySelector('#w{index} .more').click()")
    assert page.run(f"document.querySelectorAll('#w{index} .detail').length") == 0


def test_a_2_4_tile_that_is_computed_dense_has_a_colour_of_its_own(show: Show) -> None:
    report = json.loads(show.texts[7])
    weight = next(w for w in report["weights"] if w["lowering"] == "cover")
    # Six tiles of 32 x 8 in one row: dense, lost, 2:4, split, dense, dense.
    weight["tile_map"] = {
        "rows": "1*32",
        "columns": "6*8",
        "sparse": "YA==",
        "computed_sparse": "MA==",
    }
    page = show(json.dumps(report))
    index = report["weights"].index(weight)
    page.run(f"document.querySelector('#w{index} .more').click()")
    label = page.run(f"document.querySelector('#w{index} .detail canvas').ariaLabel")
    assert label.endswith(
        "tiles: 3 dense; 1 dense, in 2:4 pieces; 1 2:4, computed dense; 1 2:4, in a 2:4 piece"
    )
    assert len(page.run(f"{COLOURS}(document.querySelector('#w{index} .detail canvas'))")) == 5


def test_maps_follow_the_colour_scheme(show: Show) -> None:
    page = show(show.texts[7])
    page.run("document.querySelector('#w0').scrollIntoView()")
    colours = f"{COLOURS}(document.querySelector('#w0 canvas')).join()"
    light = _until(page, colours, unlike=BLANK)
    page.look(DESKTOP, dark=True)
    assert BLANK not in _until(page, colours, unlike=light)


def test_the_chart_leads_to_the_weight(show: Show) -> None:
    page = show(show.texts[400])
    page.run(
        "document.querySelector('.chart rect[data-first=\"123\"]')"
        ".dispatchEvent(new MouseEvent('click', {bubbles: true}))"
    )
    _settle(page)
    assert page.run("document.activeElement.closest('tbody').id") == "w123"
    assert page.run("document.querySelectorAll('#w123 .detail').length") == 1


def test_hostile_names_stay_text(show: Show) -> None:
    report = json.loads(show.texts[7])
    weight = report["weights"][0]
    weight |= dict.fromkeys(("weight", "reason", "lowering", "geometry", "dtype"), HOSTILE)
    weight["masks"] = [HOSTILE]
    page = show(with_facts(json.dumps(report), left_alone={HOSTILE: HOSTILE}))
    page.run("document.querySelector('.more').click()")
    assert page.run(NAMES)[0] == HOSTILE
    assert HOSTILE in page.run("document.querySelector('.detail dl').textContent")
    assert page.run("document.images.length + document.scripts.length") == 2
    assert page.complaints == []


def test_the_keyboard_reaches_every_control(show: Show) -> None:
    page = show(show.texts[7])
    for kind in ("keyDown", "keyUp"):
        page.send(
            "Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9
        )
    assert page.run("document.activeElement.textContent") == "Skip to the weights"
    without = page.run(
        "[...document.querySelectorAll('button, input, select, summary, .scroll')]"
        ".filter(e => e.tabIndex < 0).length"
    )
    assert without == 0
    unnamed = page.run(
        "[...document.querySelectorAll('input, select')].filter(e => !e.labels.length).length"
    )
    assert unnamed == 0


def test_paper_is_light_and_has_every_map(show: Show, tmp_path: Path) -> None:
    page = show(show.texts[400], dark=True)
    page.run("dispatchEvent(new Event('beforeprint'))")
    blank = page.run(
        "[...document.querySelectorAll('td.map canvas')]"
        f".filter(c => {COLOURS}(c).includes('{BLANK}')).length"
    )
    assert blank == 0
    assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(253, 253, 251)"
    page.run("dispatchEvent(new Event('afterprint'))")
    assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(20, 22, 25)"
    page.print(tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
