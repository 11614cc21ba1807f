"""The verb `report`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from patch_compile.cli.console import say
from patch_compile.cli.outputs import check_output
from patch_compile.papers import draw_report

__all__ = ["report"]


def report(
    source: Path = Path("out"),
    /,
    *,
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
) -> None:
    """Draw report.html again, from a report.json of this release or an older one.

    Args:
        source: the folder that patch-compile wrote, or its report.json.
        output: the page, a .html file; by default report.html beside report.json.
    """
    found = source / "report.json" if source.is_dir() else source
    page = output or found.with_suffix(".html")
    check_output(page, [found], ".html")
    say(f"wrote {draw_report(found, page)}")
