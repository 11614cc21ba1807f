"""Latencies of one model's products, measured on the GPU at hand: a table like those shipped.

M: tokens. N: out features. K: in features.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from patch_compile.errors import ModelError, RecipeError, RuntimeUnavailable
from patch_compile.io.atomic import write_text
from patch_compile.io.onnx_model import load_model
from patch_compile.parsing import DAMAGE, parse_json
from patch_compile.passes.pipeline import inline
from patch_compile.passes.sites import find_sites
from patch_compile.passes.structure import find_structure
from patch_compile.recipe import CalibrateRecipe
from patch_compile.runtimes.gemm import Timed, time_gemm
from patch_compile.runtimes.gpu import Gpu, find_gpus
from patch_compile.targets.datasheets import GPUS, named
from patch_compile.targets.model import fitted
from patch_compile.targets.table import Table

__all__ = ["Measure", "calibrate", "gemm_sizes"]

Progress = Callable[[int, int, str], None]
Size = tuple[int, int, int]
Row = tuple[int, int, int, float, float]

# Halves are cut at whole tiles of common kernels, and not below them.
_TILE = 64


class Measure(Protocol):
    """Times one product of M x N x K."""

    def __call__(self, m: int, n: int, k: int, *, sparse24: bool) -> Timed:
        """Returns what was measured."""
        ...


@dataclass
class _Part:
    """What was measured so far, in a file beside the table that goes when it is whole."""

    path: Path
    facts: dict[str, str]
    rows: list[Row] = field(default_factory=list)

    def read(self) -> None:
        if not self.path.is_file():
            return
        try:
            data = parse_json(self.path.read_text("utf-8"))
            facts, rows = data["of"], [_row(row) for row in data["rows"]]
        except DAMAGE as error:
            raise ModelError(
                f"measurements '{self.path}' | cannot be read: {error}; delete the file"
            ) from error
        if facts != self.facts:
            raise ModelError(
                f"measurements '{self.path}' | are of {facts}, not of {self.facts}; delete "
                "the file, or write another table (-o)"
            )
        self.rows = rows

    def add(self, row: Row) -> None:
        self.rows.append(row)
        write_text(self.path, json.dumps({"of": self.facts, "rows": self.rows}) + "\n")


def _row(row: Sequence[float]) -> Row:
    m, n, k, dense, sparse = row
    return int(m), int(n), int(k), float(dense), float(sparse)


def gemm_sizes(model: str | Path, recipe: CalibrateRecipe) -> list[Size]:
    """Lists M, N, K of every product that a plan of the model asks times of.

    Those of its weights, of weights that share X as one wide product, and, with `cuts`, of
    both halves' sizes along N and along K; what lies between is interpolated.

    Raises:
        ModelError: if the model cannot be read, or has no weight that can be 2:4.
    """
    shapes = dict.fromkeys(_shapes(Path(model), cuts=recipe.cuts))
    if not shapes:
        raise ModelError(
            f"model '{model}' | has no MatMul or Gemm with a constant weight whose in "
            "features are a multiple of 4; inspect it"
        )
    return [(m, n, k) for n, k in shapes for m in sorted(set(recipe.tokens))]


def _shapes(model: Path, *, cuts: bool) -> Iterator[tuple[int, int]]:
    graph = load_model(model)
    inline(graph)
    sites = [site for site in find_sites(graph)[0] if site.weight.shape[1] % 4 == 0]
    shapes = {site.name: site.weight.shape for site in sites}
    merged = [
        (sum(shapes[name][0] for name in names), shapes[names[0]][1])
        for names in find_structure(graph, sites).siblings
    ]
    for n, k in (*shapes.values(), *merged):
        yield n, k
        if cuts and n >= 2 * _TILE:
            yield n // 2 // _TILE * _TILE, k
        if cuts and k >= 2 * _TILE:
            yield n, k // 2 // _TILE * _TILE


def calibrate(
    model: str | Path,
    output: str | Path,
    recipe: CalibrateRecipe | None = None,
    progress: Progress | None = None,
    *,
    measure: Measure | None = None,
    gpu: Gpu | None = None,
) -> Table:
    """Measures a model's products and writes a table that `--target` takes.

    A run that was stopped goes on where it was: measurements are kept beside the table.

    Args:
        model: path of an .onnx file; its weights' shapes alone are read.
        output: the table, a .json file.
        recipe: tokens, element type and time limit.
        progress: called with (products done, products in all, the one being measured).
        measure: times one product; by default trtexec does.
        gpu: it runs on; by default the first that the driver lists.

    Raises:
        RuntimeUnavailable: if there is no GPU, no trtexec, or it fails.
        RecipeError: if the GPU's datasheet is unknown, or the output is no .json file.
        ModelError: if the model cannot be read, or measurements there are of another GPU.
    """
    recipe, output = recipe or CalibrateRecipe(), Path(output)
    if output.suffix != ".json":
        raise RecipeError(f"table '{output}' | is no .json file, which --target takes; rename")
    sizes = gemm_sizes(model, recipe)
    gpu = gpu or _gpu_here()
    sheet = _sheet(gpu, recipe)
    facts = {"device": gpu.name, "driver": gpu.driver, "dtype": recipe.dtype}
    part = _Part(output.with_suffix(".part.json"), facts)
    part.read()
    versions = _measure_all(sizes, part, measure or _by_trtexec(recipe), progress)
    if versions:
        facts["tensorrt"] = " and ".join(versions)
    wanted = set(sizes)
    rows = np.array([row for row in part.rows if row[:3] in wanted], np.float64)
    (table,) = fitted([Table(sheet, recipe.dtype, {"calibrate": rows}, _source(facts))])
    write_text(output, table.to_json())
    part.path.unlink(missing_ok=True)
    return table


def _gpu_here() -> Gpu:
    found = find_gpus()
    if not found:
        raise RuntimeUnavailable(
            "GPU | nvidia-smi finds none, and calibrate measures on the GPU at hand; run it "
            "there (it needs trtexec), or plan with a shipped target, as in --target a100-bf16"
        )
    return found[0]


def _sheet(gpu: Gpu, recipe: CalibrateRecipe) -> str:
    sheet = recipe.like or named(gpu.name)
    if sheet is not None and sheet in GPUS and recipe.dtype in GPUS[sheet].faster:
        return sheet
    given = f"like '{recipe.like}'" if recipe.like else f"GPU '{gpu.name}'"
    raise RecipeError(
        f"{given} | has no datasheet here, which tells what a latency may depend on; give the "
        f"nearest by --like, one of {', '.join(GPUS)}"
    )


def _by_trtexec(recipe: CalibrateRecipe) -> Measure:
    def measure(m: int, n: int, k: int, *, sparse24: bool) -> Timed:
        return time_gemm(m, n, k, recipe.dtype, sparse24=sparse24, timeout=recipe.timeout)

    return measure


def _measure_all(
    sizes: Sequence[Size], part: _Part, measure: Measure, progress: Progress | None
) -> list[str]:
    """Measures what is not there yet, and returns the versions of TensorRT that did."""
    known = {row[:3] for row in part.rows}
    versions: dict[str, None] = {}
    for done, (m, n, k) in enumerate(sizes):
        if progress is not None:
            progress(done, len(sizes), f"measuring, {m} x {n} x {k}")
        if (m, n, k) in known:
            continue
        dense, sparse = (measure(m, n, k, sparse24=kind) for kind in (False, True))
        part.add((m, n, k, dense.us, sparse.us))
        versions |= {found.version: None for found in (dense, sparse) if found.version}
    if progress is not None:
        progress(len(sizes), len(sizes), "measuring")
    return list(versions)


def _source(facts: dict[str, str]) -> str:
    tensorrt = f"TensorRT {facts['tensorrt']}" if "tensorrt" in facts else "TensorRT"
    return (
        f"{tensorrt} on {facts['device']} (driver {facts['driver']}), medians of trtexec by "
        "patch-compile calibrate; a 2:4 weight runs as TensorRT chose, sparse or dense"
    )
