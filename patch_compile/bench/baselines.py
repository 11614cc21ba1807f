"""Models to measure a compiled one against, made from its dense original.

Their 2:4 patterns are by magnitude: good for times, which do not depend on the pattern, and
for nothing else. They take the type and the joint products that the compiled model has.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from patch_compile.compiler import compile_model
from patch_compile.errors import ModelError, RecipeError
from patch_compile.expected import read_beside
from patch_compile.io.onnx_model import load_model
from patch_compile.io.save_model import save_model
from patch_compile.io.stored_weight import StoredWeight
from patch_compile.parsing import parse_json
from patch_compile.passes.pipeline import inline
from patch_compile.passes.precision import cast_model
from patch_compile.passes.sites import Site, find_sites
from patch_compile.passes.structure import find_structure
from patch_compile.recipe import Baseline, CastType, CompileRecipe
from patch_compile.tiles.geometry import Geometry
from patch_compile.tiles.masks import Masks
from patch_compile.tiles.pattern import top2_of_4
from patch_compile.tiles.weight_mask import WeightMask, from_keep

__all__ = ["make_baselines"]

_WHOLE = Geometry.parse("weight")


@dataclass(frozen=True)
class _Past:
    """What the compiled model's report tells of it."""

    weights: frozenset[str]
    dtype: CastType | None
    quantized: bool


def make_baselines(
    dense: Path, compiled: Path, names: Sequence[Baseline], folder: Path
) -> dict[str, Path]:
    """Writes the models that were asked for and returns their paths by name.

    `dense` is missing where the compiled model was not cast: it would be the original.

    Args:
        dense: the original .onnx file.
        compiled: the compiled one, with its report.json beside it.
        names: of `BenchRecipe.baselines`.
        folder: to write them to; each gets a folder of its own.

    Raises:
        ModelError: if a model or the report cannot be read, or they do not belong together.
        RecipeError: if the compiled model is quantised, or has no MLP for `ffn-only`.
    """
    if not names:
        return {}
    past = read_beside(compiled, "report.json", _past)
    if past.quantized:
        raise RecipeError(
            f"baselines | would hold floats, and '{compiled}' is quantised; give models that "
            "are quantised too, by --baseline NAME=FILE"
        )
    made = {name: _made(name, dense, past, folder / name.replace(":", "")) for name in names}
    return {name: path for name, path in made.items() if path is not None}


def _past(text: str) -> _Past:
    report = parse_json(text)
    weights = frozenset(str(weight["weight"]) for weight in report["weights"])
    return _Past(weights, report["recipe"].get("dtype"), "quantized" in report)


def _made(name: Baseline, dense: Path, past: _Past, folder: Path) -> Path | None:
    graph = load_model(dense)
    inline(graph)
    if name == "dense":
        return _cast(graph, past.dtype, folder)
    sites = [site for site in find_sites(graph)[0] if site.name in past.weights]
    if len(sites) < len(past.weights):
        lost = sorted(past.weights - {site.name for site in sites})
        raise ModelError(
            f"model '{dense}' | has no weight '{lost[0]}', which the compiled one's report "
            "names; give the model that was compiled"
        )
    if name == "ffn-only":
        sites = _of_mlps(graph, sites)
    # Neither target nor budget of the compiled one, which would leave weights dense.
    recipe = CompileRecipe(dtype=past.dtype, min_gain=0.0)
    masks = Masks({mask.name: mask for mask in _masks(sites)}, {"method": "magnitude"})
    return compile_model(graph, masks, recipe).save(folder)


def _cast(graph: ir.Model, dtype: CastType | None, folder: Path) -> Path | None:
    if dtype is None:
        return None
    folder.mkdir(parents=True)
    save_model(cast_model(graph, dtype), folder / "dense.onnx")
    return folder / "dense.onnx"


def _of_mlps(graph: ir.Model, sites: Iterable[Site]) -> list[Site]:
    """Those around an inner axis of elementwise operations, whatever their names are."""
    every = find_sites(graph)[0]
    blocks = find_structure(graph, every).blocks
    members = {name for block in blocks if not block.attends for name in block.weights}
    found = [site for site in sites if site.name in members]
    if not found:
        raise RecipeError(
            "baselines | hold ffn-only, and no MLP is found among the compiled weights: no "
            "products with elementwise operations between; leave it out"
        )
    return found


def _masks(sites: Sequence[Site]) -> Iterator[WeightMask]:
    carriers = Counter(name for site in sites for name in site.parameters)
    for site in sites:
        if site.weight.shape[1] % 4:
            continue
        own = [name for name in site.parameters if carriers[name] == 1]
        if not own:
            raise ModelError(
                f"weight '{site.name}' | has no name of its own in the graph; give baselines "
                "by --baseline NAME=FILE"
            )
        grid = _WHOLE.grid(site.weight.shape)
        keep = top2_of_4(_magnitudes(site.weight))
        yield from_keep(own[0], grid, np.array([[False]]), keep, geometry="weight")


def _magnitudes(weight: StoredWeight) -> NDArray[np.int64]:
    """Integers in the order of the absolute values, (N, K): floats without their signs."""
    bits = weight.bits()
    return (bits & np.iinfo(bits.dtype).max // 2).T.astype(np.int64)
