"""What happens to pages on their way into the site."""

import json
from pathlib import Path

import pytest
from jinja2 import UndefinedError

from scripts.docs.hook import on_post_page, on_post_template, rendered
from scripts.docs.kinds import default_words, kind_words
from scripts.docs.mathml import with_mathml

RESULTS = Path(__file__).parent.parent.parent / "benchmarks" / "results"


def test_numbers_come_from_the_results() -> None:
    wanted = json.loads((RESULTS / "latency_model.json").read_text("utf-8"))
    share = wanted["models"]["ours"]["median"]
    text = '{{ measured("latency_model").models.ours.median | percent(2) }}'
    assert rendered(text) == f"{share * 100:.2f}\u00a0%"
    assert rendered("{{ 12345.678 | fixed(1) }}") == "12,345.7"


def test_a_number_that_is_gone_fails_the_build() -> None:
    with pytest.raises(UndefinedError):
        rendered('{{ measured("latency_model").models.gone.median | percent }}')


class Page:
    url = "how-to/x.html"


def test_the_theme_fetches_its_shim_from_the_site() -> None:
    text = '<script src="https://unpkg.com/iframe-worker/shim"></script>'
    found = on_post_page(text, page=Page())
    assert found == '<script src="../assets/iframe-worker.js"></script>'
    assert on_post_template(text) == '<script src="assets/iframe-worker.js"></script>'


def test_equations_become_mathml() -> None:
    inline = with_mathml(r'a <span class="arithmatex">\(x &lt; 1\)</span> b')
    assert inline.startswith("a <math")
    assert "&#x0003C;" in inline
    block = with_mathml('<div class="arithmatex">\n\\[x^2\\]\n</div>')
    assert block.startswith('<div class="equation"><math')
    assert 'display="block"' in block
    assert "<msup>" in block


def test_types_and_defaults_in_words() -> None:
    assert kind_words(tuple[int, int, int]) == "3 integers"
    assert kind_words(tuple[float, ...]) == "several numbers"
    assert kind_words(Path | None) == "path"
    assert default_words((1, 512)) == "`1,512`"
    assert default_words(()) == default_words(None) == "none"
    assert default_words(False) == "no"
