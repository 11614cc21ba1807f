"""The built site: no name is missing from it, no link broken, nothing fetched."""

import re
import zlib
from dataclasses import fields
from pathlib import Path

import pytest

import patch_compile
from patch_compile.cli.main import app, run
from scripts.docs.links import Page, broken_links, outside_links, read_pages
from scripts.docs.python_api import TYPES, documented
from scripts.docs.recipes import recipes
from scripts.docs.verbs import takers

VERBS = [name for name in app if not name.startswith("-")]


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    return {path.relative_to(site).as_posix(): page for path, page in read_pages(site).items()}


def missing_options(verb: str, help_text: str, anchors: set[str]) -> set[str]:
    """Options that a verb's help names and its reference does not."""
    rows = re.findall(r"^│ [* ]*((?:--?[\w-]+,? *)+)", help_text, re.MULTILINE)
    # A long row goes on with the option's other form, `--no-x`, in a line of its own.
    firsts = {re.findall(r"--(?:no-)?([a-z][\w-]*)", row)[0] for row in rows if "--" in row}
    return {
        f"--{option}"
        for option in firsts
        if not {f"{verb}-{option}", f"every-{option}"} & anchors
    }


@pytest.mark.parametrize("verb", ["main", *VERBS])
def test_every_verb_and_option_is_in_the_reference(
    verb: str, pages: dict[str, Page], capsys: pytest.CaptureFixture[str]
) -> None:
    anchors = pages["reference/cli.html"].anchors
    assert verb in anchors
    assert run([*([] if verb == "main" else [verb]), "--help"]) == 0
    text = capsys.readouterr().out
    assert missing_options(verb, text, anchors) - {"--help", "--version"} == set()


def test_a_missing_option_is_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["learn", "--help"]) == 0
    found = missing_options("learn", capsys.readouterr().out, {"learn-data", "every-config"})
    assert {"--output", "--tile", "--sparsity", "--checkpoint-every"} <= found
    assert not {"--data", "--config"} & found


def test_every_recipe_and_field_is_in_the_reference(pages: dict[str, Page]) -> None:
    anchors = pages["reference/recipes.html"].anchors
    assert len(recipes()) >= 8
    for recipe in recipes():
        name = recipe.__name__.lower()
        wanted = {name} | {f"{name}-{f.name.replace('_', '-')}" for f in fields(recipe)}
        assert wanted - anchors == set()
        assert takers(recipe)


def test_every_field_says_what_it_means(site: Path) -> None:
    text = (site / "reference" / "recipes.html").read_text("utf-8")
    meanings = re.findall(r"<dd>(.*?)</dd>", text, re.DOTALL)
    assert len(meanings) == sum(len(fields(recipe)) for recipe in recipes())
    assert all(len(meaning.strip()) > 5 for meaning in meanings)


def inventory(site: Path) -> set[str]:
    """Names that the site can be linked to by, as other sites read them."""
    raw = (site / "objects.inv").read_bytes()
    body = zlib.decompress(raw.split(b"\n", 4)[4]).decode("utf-8")
    return {line.split(" ", 1)[0] for line in body.splitlines()}


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    names = {f"patch_compile.{name}" for name in patch_compile.__all__}
    names |= {f"{module}.{name}" for module in TYPES for name in documented(module)}
    assert names - inventory(site) == set()


def test_names_have_their_docstrings(site: Path) -> None:
    text = (site / "reference" / "python.html").read_text("utf-8")
    assert "Rewrites a model so that every masked product is cut" in text
    assert "Makes masks for a PyTorch language model" in text


def test_no_link_is_broken(site: Path) -> None:
    found = read_pages(site)
    assert len(found) > 15
    assert sum(len(page.links) for page in found.values()) > 500
    assert broken_links(site, found) == []
    assert "https://arxiv.org/abs/2509.23410" in outside_links(found)


def test_broken_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.html").write_text(
        '<h1 id="top"></h1><a href="sub/b.html#here">1</a><a href="sub/b.html#gone">2</a>'
        '<img src="no.png"><a href="#top">3</a><a href="#nowhere">4</a>'
        '<a href="https://example.org/x">5</a>'
    )
    (tmp_path / "sub" / "b.html").write_text('<p id="here"></p><a href="../a.html">6</a>')
    found = read_pages(tmp_path)
    broken = ["sub/b.html#gone", "no.png", "#nowhere"]
    assert broken_links(tmp_path, found) == [f"a.html: {link}" for link in broken]
    assert outside_links(found) == ["https://example.org/x"]


def test_nothing_is_fetched(site: Path) -> None:
    loads = (
        r'<(?:script|img|source|iframe)\b[^>]*src="?(https?:)?//|<link\b[^>]*href="?https?://'
    )
    texts = {path: path.read_text("utf-8") for path in site.rglob("*.html")}
    assert [path.name for path, text in texts.items() if re.search(loads, text)] == []
    sheets = [path.read_text("utf-8") for path in site.rglob("*.css")]
    assert [sheet for sheet in sheets if re.search(r"url\(['\"]?(https?:)?//", sheet)] == []


def test_equations_are_mathml(site: Path) -> None:
    text = (site / "explanation" / "lowerings.html").read_text("utf-8")
    assert text.count("<math") > 20
    assert "arithmatex" not in text
    assert "$$" not in re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
