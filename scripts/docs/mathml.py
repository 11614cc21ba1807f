"""Equations as MathML, which browsers draw themselves: no script, no fonts to fetch."""

import html
import re

from latex2mathml.converter import convert

__all__ = ["with_mathml"]

# What pymdownx.arithmatex leaves in a page in its generic mode.
_INLINE = re.compile(r'<span class="arithmatex">\\\((.+?)\\\)</span>', re.DOTALL)
_BLOCK = re.compile(r'<div class="arithmatex">\s*\\\[(.+?)\\\]\s*</div>', re.DOTALL)


def with_mathml(page: str) -> str:
    """Returns an HTML page with its LaTeX turned into MathML."""
    page = _INLINE.sub(lambda found: _math(found[1], "inline"), page)
    return _BLOCK.sub(
        lambda found: f'<div class="equation">{_math(found[1], "block")}</div>', page
    )


def _math(latex: str, display: str) -> str:
    return convert(html.unescape(latex).strip(), display=display)
