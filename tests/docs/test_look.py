"""The site in a real browser: on a phone and on a desk, light and dark, and its search."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.page.browser import Page, chromium, open_page

pytestmark = pytest.mark.skipif(
    chromium() is None, reason="no Chromium on the PATH, as of `apt-get install chromium`"
)

PHONE, DESKTOP = 360, 1280
# Elements that stick out of the page, but for those that scroll by themselves.
WIDTH = "document.documentElement.scrollWidth"
# The smallest letters of the drawings, in pixels of the screen.
SMALLEST = """Math.min(...[...document.querySelectorAll('svg.pc-graph')].map(svg =>
  11.5 * svg.getBoundingClientRect().width / svg.viewBox.baseVal.width))"""
NUMBERS = """12 * document.querySelector('.pc-curves svg').getBoundingClientRect().width /
  document.querySelector('.pc-curves svg').viewBox.baseVal.width"""
CURVES = """[document.body, ...document.querySelectorAll('.pc-curve')].map((each, index) =>
  getComputedStyle(each)[index ? 'stroke' : 'backgroundColor'])"""
# Red, green and blue that a drawing's words and a dense box come to.
COLOURS = """['.pc-word', 'rect.pc-dense', 'rect.pc-sparse24'].map(name =>
  getComputedStyle(document.querySelector('svg.pc-graph ' + name)).fill)"""


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with open_page() as page:
        yield page


def _luminance(colour: str) -> float:
    """Relative luminance of `rgb(r, g, b)`: WCAG 2.2."""
    parts = [int(part) / 255 for part in colour[4:-1].split(",")]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: float, other: float) -> float:
    light, shade = max(one, other), min(one, other)
    return (light + 0.05) / (shade + 0.05)


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_no_page_is_wider_than_the_screen(page: Page, site: Path, width: int) -> None:
    found = {}
    for path in sorted(site.rglob("*.html")):
        page.look(width)
        page.open(path)
        found[path.relative_to(site).as_posix()] = page.run(WIDTH)
    assert len(found) > 15
    assert {name: wide for name, wide in found.items() if wide > width} == {}


def test_nothing_is_asked_of_the_network(page: Page, site: Path) -> None:
    page.complaints.clear()
    for name in ("index.html", "explanation/lowerings.html", "reference/python.html"):
        page.open(site / name)
    beyond = [c for c in page.complaints if not c.startswith(("file:", "data:", "blob:"))]
    assert beyond == []


@pytest.mark.parametrize("dark", [False, True])
def test_drawings_can_be_read(page: Page, site: Path, dark: bool) -> None:
    page.look(PHONE, dark=dark)
    page.open(site / "explanation" / "lowerings.html")
    scheme = page.run("document.body.dataset.mdColorScheme")
    assert scheme == ("slate" if dark else "default")
    assert page.run(SMALLEST) >= 10
    word, dense, sparse = (_luminance(colour) for colour in page.run(COLOURS))
    # What WCAG 2.2 asks of text, level AA.
    assert min(_contrast(word, box) for box in (dense, sparse)) >= 4.5


@pytest.mark.parametrize("dark", [False, True])
def test_curves_can_be_read(page: Page, site: Path, dark: bool) -> None:
    page.look(PHONE, dark=dark)
    page.open(site / "explanation" / "learning.html")
    assert page.run(NUMBERS) >= 10
    behind, *lines = (_luminance(colour) for colour in page.run(CURVES))
    assert len(lines) > 3
    # What it asks of what is drawn.
    assert min(_contrast(line, behind) for line in lines) >= 3


def test_the_search_works_on_pages_from_disk(page: Page, site: Path) -> None:
    page.look(DESKTOP)
    page.open(site / "index.html")
    page.run(
        """(field => { field.focus(); field.value = 'residual';
        field.dispatchEvent(new KeyboardEvent('keyup')); })(
        document.querySelector('[data-md-component=search-query]'))"""
    )
    links: list[str] = []
    until = time.monotonic() + 60
    while not links and time.monotonic() < until:
        time.sleep(0.1)
        links = page.run(
            "[...document.querySelectorAll('.md-search-result__link')].map(a => a.href)"
        )
    assert any("explanation/lowerings.html#residual" in link for link in links)
