"""The verb `report`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from patch_compile.cli.console import say
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
        output: the page; by default report.html beside report.json.
    """
    say(f"wrote {draw_report(source, output)}")
