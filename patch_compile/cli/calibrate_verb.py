"""The verb `calibrate`: parses, calls the API, prints."""

from pathlib import Path
from typing import Annotated

import numpy as np
from cyclopts import Parameter

from patch_compile.calibration import calibrate as measure_model
from patch_compile.calibration import gemm_sizes
from patch_compile.cli.console import out, progress_bar, say
from patch_compile.cli.outputs import TABLE, check_json
from patch_compile.cli.tables import plain_table
from patch_compile.recipe import CalibrateRecipe

__all__ = ["calibrate"]

_CALIBRATE = CalibrateRecipe()


def calibrate(
    model: Path,
    /,
    *,
    output: Annotated[Path, Parameter(alias="-o")] = Path("gpu.json"),
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    recipe: Annotated[CalibrateRecipe, Parameter(name="*")] = _CALIBRATE,
) -> None:
    """Measure MODEL's products, dense and 2:4, on the GPU at hand, for `--target`.

    Needs an NVIDIA GPU and trtexec. Each product is built and timed alone, some seconds each;
    a run that was stopped goes on where it was. Then plan with `--target gpu.json`.

    Args:
        model: an .onnx file; the shapes of its weights are what is measured.
        output: the table, a .json file.
        dry_run: list what would be measured; needs no GPU.
    """
    if dry_run:
        sizes = gemm_sizes(model, recipe)
        for m, n, k in sizes:
            out.print(f"{m} x {n} x {k}")
        say(f"{len(sizes)} products (tokens x N x K), each dense and 2:4")
        return
    check_json(output, TABLE, [model])
    with progress_bar() as progress:
        table = measure_model(model, output, recipe, progress)
    rows = np.concatenate(list(table.points.values()))
    printed = plain_table("Measured", "tokens", "N x K", "dense us", "2:4 us", "gain", right=3)
    for m, n, k, dense, sparse in rows:
        printed.add_row(
            f"{m:.0f}",
            f"{n:.0f} x {k:.0f}",
            f"{dense:.1f}",
            f"{sparse:.1f}",
            f"{dense / sparse:.2f}x",
        )
    out.print(printed)
    say(f"wrote {output}")
