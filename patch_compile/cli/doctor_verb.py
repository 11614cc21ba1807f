"""The verb `doctor`."""

import json
from dataclasses import asdict
from typing import Annotated

from cyclopts import Parameter
from rich.table import Table

from patch_compile.cli.console import out, progress_bar
from patch_compile.runtimes.doctor import Diagnosis, diagnose

__all__ = ["doctor"]


def doctor(*, json_: Annotated[bool, Parameter(name="--json", negative="")] = False) -> None:
    """Try every part of this machine that some verb needs, and tell how to mend the rest.

    Nothing is taken on trust: each runtime runs or builds a small product in a process of its
    own. What is missing is no error: compiling needs none of it.

    Args:
        json_: print everything as JSON.
    """
    with progress_bar() as progress:
        found = diagnose(progress)
    if json_:
        out.print(json.dumps(asdict(found), indent=1, allow_nan=False))
        return
    out.print(f"{found.system}, Python {found.python}")
    out.print(", ".join(f"{name} {number}" for name, number in found.packages.items()))
    out.print(_table(found))
    working = sum(check.state == "works" for check in found.checks)
    out.print(f"{working} of {len(found.checks)} parts work; compiling needs none of them")
    for check in found.checks:
        if check.mend:
            out.print(f"to mend {check.name}: {check.mend}")


def _table(found: Diagnosis) -> Table:
    table = Table(box=None, title_justify="left", pad_edge=False)
    for name in ("part", "state", "needed for", "found"):
        table.add_column(name)
    for check in found.checks:
        table.add_row(check.name, check.state, check.serves, check.found)
    return table
