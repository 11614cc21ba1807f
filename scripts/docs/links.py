"""Checks that every link inside a built site leads somewhere; lists those that lead out.

python scripts/docs/links.py SITE
"""

import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

__all__ = ["Page", "broken_links", "outside_links", "read_pages"]

_REFERENCES = {"a": "href", "link": "href", "img": "src", "script": "src", "source": "src"}


@dataclass
class Page(HTMLParser):
    """What one page points at, and where it can be pointed at."""

    links: list[str] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Takes the ids and the references of one element."""
        found = dict(attrs)
        self.anchors.update(value for name in ("id", "name") if (value := found.get(name)))
        target = found.get(_REFERENCES.get(tag, ""))
        if target:
            self.links.append(target)


def read_pages(site: Path) -> dict[Path, Page]:
    """Parses every .html file of the site."""
    pages = {}
    for path in sorted(site.rglob("*.html")):
        pages[path] = Page()
        pages[path].feed(path.read_text("utf-8"))
    return pages


def broken_links(site: Path, pages: dict[Path, Page]) -> list[str]:
    """Returns one line for each link whose file or anchor is not in the site."""
    return [
        f"{path.relative_to(site)}: {link}"
        for path, page in pages.items()
        for link in page.links
        if not _leads_out(link) and not _found(path, link, site, pages)
    ]


def outside_links(pages: dict[Path, Page]) -> list[str]:
    """Returns the addresses that lead out of the site."""
    return sorted({link for page in pages.values() for link in page.links if _leads_out(link)})


def _leads_out(link: str) -> bool:
    parts = urlsplit(link)
    return bool(parts.scheme or parts.netloc)


def _found(path: Path, link: str, site: Path, pages: dict[Path, Page]) -> bool:
    parts = urlsplit(link)
    place = unquote(parts.path)
    base = site if place.startswith("/") else path.parent
    target = (base / place.lstrip("/")).resolve() if place else path.resolve()
    target = target / "index.html" if target.is_dir() else target
    if not target.is_file():
        return False
    known = {name.resolve(): page.anchors for name, page in pages.items()}
    # Only pages have anchors; what a script makes of a fragment is its own affair.
    return not parts.fragment or unquote(parts.fragment) in known.get(target, {parts.fragment})


def main() -> int:
    """Prints what is wrong and what leads out; the exit code tells."""
    site = Path(sys.argv[1])
    pages = read_pages(site)
    broken = broken_links(site, pages)
    count = sum(len(page.links) for page in pages.values())
    sys.stdout.write(f"{len(pages)} pages, {count} links, {len(broken)} broken\n")
    sys.stdout.writelines(f"broken: {line}\n" for line in broken)
    sys.stdout.writelines(f"not checked: {link}\n" for link in outside_links(pages))
    return 1 if broken or not pages else 0


if __name__ == "__main__":
    sys.exit(main())
