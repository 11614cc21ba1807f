"""What mkdocs calls while it builds the site.

Pages are Jinja templates: their numbers come from benchmarks/results, their references and
drawings from the code, so that none of them can grow old.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from mkdocs.utils import get_relative_url

from patch_compile.io.masks_file import schema
from patch_compile.report import Report
from patch_compile.tiles.plan import Plan
from scripts.docs.curves import perplexity_curves
from scripts.docs.figures import figure
from scripts.docs.mathml import with_mathml
from scripts.docs.python_api import names_reference, types_reference
from scripts.docs.recipes import recipes_reference
from scripts.docs.verbs import verbs_reference

__all__ = [
    "on_page_content",
    "on_page_markdown",
    "on_post_page",
    "on_post_template",
    "rendered",
]

# The theme fetches this, for its search on pages from disk; a copy lies in assets.
_SHIM = "https://unpkg.com/iframe-worker/shim"

ROOT = Path(__file__).parent.parent.parent


@cache
def measured(name: str) -> Any:
    """What a benchmark wrote."""
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    return json.loads(path.read_text("utf-8"))


_PAGE = Environment(undefined=StrictUndefined, autoescape=False)
_PAGE.filters["percent"] = lambda share, digits=1: f"{100 * share:.{digits}f}\u00a0%"
_PAGE.filters["fixed"] = lambda number, digits=2: f"{number:,.{digits}f}"
_PAGE.globals.update(
    measured=measured,
    figure=figure,
    perplexity_curves=perplexity_curves,
    verbs=verbs_reference,
    recipes=recipes_reference,
    python_names=names_reference,
    python_types=types_reference,
    masks_schema=schema(),
    plan_version=json.loads(Plan(()).to_json())["version"],
    report_version=json.loads(Report((), {}, {}, {}, {}).to_json())["version"],
)


def rendered(text: str) -> str:
    """Returns a page's Markdown with its numbers and references in place."""
    return _PAGE.from_string(text).render()


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fills in a page."""
    return rendered(markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Draws a page's equations."""
    return with_mathml(html)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Keeps the page from fetching anything."""
    return output.replace(_SHIM, get_relative_url("assets/iframe-worker.js", page.url))


def on_post_template(output_content: str, **_: Any) -> str:
    """The same for pages of the theme, such as 404.html."""
    return output_content.replace(_SHIM, "assets/iframe-worker.js")
