"""The verbs as functions: what the command line calls, and what Python users call.

Optional packages load when a function needs them; see `_require`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from patch_compile._require import require
from patch_compile.compiler import COMPILED
from patch_compile.errors import RecipeError
from patch_compile.joining import Joined, join
from patch_compile.names import written
from patch_compile.noting import note_engine
from patch_compile.piece_sites import find_pieces
from patch_compile.recipe import (
    BuildRecipe,
    ExportRecipe,
    LearnRecipe,
    PermuteRecipe,
)
from patch_compile.tiles.geometry import Geometry
from patch_compile.tiles.masks import Masks

if TYPE_CHECKING:
    from patch_compile.learn.candidates import Candidates
    from patch_compile.learn.permute import Permuted
    from patch_compile.runtimes.engines import EngineResult

__all__ = [
    "asked_masks",
    "build_engine",
    "check_engine",
    "export_onnx",
    "join_engine",
    "learn_candidates",
    "learn_masks",
    "learn_masks_for",
    "permute_channels",
]

Progress = Callable[[int, int, str], None]
Data = str | Path | Sequence[str | Path] | None


def learn_masks(
    model: str,
    data: Data = None,
    recipe: LearnRecipe | None = None,
    progress: Progress | None = None,
) -> Masks:
    """Makes masks for a PyTorch language model, of the recipe's budget or first sparsity.

    Args:
        model: a Hugging Face directory, a hub id, or a GGUF file.
        data: one or several of UTF-8 text, .jsonl with a `text` field, or a data set as
            `hf:NAME:CONFIG:SPLIT`; `magnitude` with `error` needs none.
        recipe: see `LearnRecipe`.
        progress: called with (steps done, steps in all, what).

    Returns:
        Masks whose sparsity is the recipe's to within one tile, or whose predicted time is.

    Raises:
        ModelError: the model cannot be loaded or has nothing to prune.
        RecipeError: the recipe contradicts itself, or the text is too short.
        RuntimeUnavailable: torch or transformers is missing.
    """
    recipe = recipe or LearnRecipe()
    found = learn_candidates(model, data, recipe, progress=progress)
    return asked_masks(found, recipe)[0]


def asked_masks(found: "Candidates", recipe: LearnRecipe) -> list[Masks]:
    """Cuts what was learned: to the recipe's `budget`, or to each `sparsity` in turn.

    Args:
        found: what `learn_candidates` gave.
        recipe: see `LearnRecipe`.

    Raises:
        RecipeError: the masks cannot keep the budget of time.
    """
    candidates = require("patch_compile.learn.candidates", "learn")
    masks: list[Masks] = candidates.asked_of(found, recipe)
    return masks


def learn_candidates(
    model: str,
    data: Data = None,
    recipe: LearnRecipe | None = None,
    *,
    run: str | Path | None = None,
    resume: bool = False,
    tensorboard: bool = False,
    checkpoint: str | Path | None = None,
    progress: Progress | None = None,
) -> "Candidates":
    """Learns once; `.cut(sparsity)` of the result gives masks of any sparsity.

    With `recipe.update` there is one sparsity alone, that of the weights in `checkpoint`.

    Args:
        model: a Hugging Face directory, a hub id, or a GGUF file.
        data: see `learn_masks`.
        recipe: see `LearnRecipe`.
        run: folder of checkpoints and log.csv, for a method that learns; None keeps none.
        resume: go on from the checkpoint in `run`, if there is one.
        tensorboard: write the log into `run` for TensorBoard too.
        checkpoint: Hugging Face folder for the weights that `recipe.update` makes.
        progress: called with (steps done, steps in all, what).

    Raises:
        ModelError: the model cannot be loaded, has nothing to prune, or its loss is NaN.
        RecipeError: the recipe contradicts itself, the text is too short, or `run` is of
            another model, text or recipe.
        RuntimeUnavailable: torch or transformers is missing.
    """
    require("torch", "learn")
    recipe = recipe or LearnRecipe()
    recipe.check_checkpoint(checkpoint)
    if checkpoint is not None:
        _check_apart("checkpoint", checkpoint, model)
    sources = _sources(data, recipe)
    require("patch_compile.learn.precision", "learn").warn_if_slow(recipe.precision)
    loaded = require("patch_compile.learn.model", "learn").load_model(model)
    if checkpoint is not None:
        update = require("patch_compile.learn.update", "learn").update_weights
        updated: Candidates = update(loaded, sources, recipe, Path(checkpoint), progress)
        return updated
    if not recipe.learns:
        oneshot = require("patch_compile.learn.oneshot", "learn")
        ranked: Candidates = oneshot.rank_tiles(loaded, sources, [recipe], progress)[0]
        return ranked
    learned = require("patch_compile.learn.training.learned", "learn")
    with _folder(run) as folder:
        found: Candidates = learned.learn_gates(
            loaded,
            sources,
            recipe,
            folder,
            resume=resume,
            tensorboard=tensorboard,
            progress=progress,
        )
    return found


def _check_apart(option: str, folder: str | Path, model: str) -> None:
    """Refuses to write new weights over those that they are made from."""
    if Path(folder).resolve() == Path(model).resolve():
        raise RecipeError(
            f"{option} '{folder}' | is MODEL itself, whose weights would be overwritten; "
            "choose another folder"
        )


def _sources(data: Data, *recipes: LearnRecipe) -> list[str | Path]:
    """Lists the texts; before anything slow, tells what is wrong with them and with tiles."""
    sources = [data] if isinstance(data, str | Path) else list(data or ())
    for recipe in recipes:
        Geometry.parse(recipe.tile)
    require("patch_compile.learn.text", "learn").check_sources(sources)
    return sources


@contextmanager
def _folder(run: str | Path | None) -> Iterator[Path]:
    if run is not None:
        yield Path(run)
        return
    with TemporaryDirectory() as folder:
        yield Path(folder)


def learn_masks_for(
    model: str,
    data: Data,
    recipes: Sequence[LearnRecipe],
    progress: Progress | None = None,
) -> list[Masks]:
    """Makes several sets of one-shot masks from one calibration; see `learn_masks`.

    Args:
        model: a Hugging Face directory, a hub id, or a GGUF file.
        data: see `learn_masks`.
        recipes: they may differ in `tile` and `sparsity`.
        progress: called with (steps done, steps in all, what).

    Returns:
        One set of masks a recipe, in order.

    Raises:
        RecipeError: if a recipe does more than calibrate, or they share no calibration.
    """
    require("torch", "learn")
    for recipe in recipes:
        recipe.check_one_shot()
    loader = require("patch_compile.learn.model", "learn")
    oneshot = require("patch_compile.learn.oneshot", "learn")
    sources = _sources(data, *recipes)
    loaded = loader.load_model(model)
    ranked: list[Candidates] = oneshot.rank_tiles(loaded, sources, recipes, progress)
    return [
        asked_masks(candidates, recipe)[0]
        for candidates, recipe in zip(ranked, recipes, strict=True)
    ]


def permute_channels(
    model: str,
    data: Data,
    output: str | Path,
    recipe: PermuteRecipe | None = None,
    progress: Progress | None = None,
) -> "Permuted":
    """Writes a checkpoint that computes what the model does, and loses less as 2:4.

    Args:
        model: a Hugging Face directory, a hub id, or a GGUF file.
        data: see `learn_masks`.
        output: folder for the new checkpoint, in the element type of the old one if all
            weights fit it, else in float32, and for permutation.json, which says where each
            channel was.
        recipe: see `PermuteRecipe`.
        progress: called with (steps done, steps in all, what).

    Raises:
        ModelError: the model cannot be loaded, or has not the channels that are to move.
        RecipeError: the text is missing or too short, or the output is the model itself.
        RuntimeUnavailable: torch or transformers is missing.
    """
    require("torch", "learn")
    _check_apart("output", output, model)
    sources = _sources(data)
    loaded = require("patch_compile.learn.model", "learn").load_model(model)
    permute = require("patch_compile.learn.permute", "learn").permute_model
    recipe = recipe or PermuteRecipe()
    permuted: Permuted = permute(loaded, sources, recipe, Path(output), progress)
    return permuted


def export_onnx(
    model: str,
    output: str | Path,
    recipe: ExportRecipe | None = None,
    masks: Masks | None = None,
    progress: Progress | None = None,
) -> Path:
    """Exports the dense model to ONNX, with every weight's parameter name on its MatMul.

    Args:
        model: a Hugging Face directory, a hub id, or a GGUF file.
        output: the .onnx file; data, tokenizer and configuration go beside it.
        recipe: see `ExportRecipe`.
        masks: checked against the model before the slow part; they are not applied.
        progress: called with (steps done, steps in all, what).

    Raises:
        ModelError: the model cannot be loaded or exported.
        MaskError: a mask belongs to another model.
        RuntimeUnavailable: torch or transformers is missing.
    """
    require("torch", "learn")
    loader = require("patch_compile.learn.model", "learn")
    exporter = require("patch_compile.learn.export", "learn")
    recipe = recipe or ExportRecipe()
    loaded = loader.load_model(model, recipe.dtype)
    path: Path = exporter.export_onnx(loaded, Path(output), recipe, masks, progress)
    return path


def check_engine(recipe: BuildRecipe) -> None:
    """Refuses an engine that could not be built here, whatever the model.

    Raises:
        RecipeError: the backend has not what the recipe asks for.
        RuntimeUnavailable: the backend is missing.
    """
    require("patch_compile.runtimes.engines", "rtx").check_engine(recipe)


def build_engine(
    model: str | Path,
    engine: str | Path,
    recipe: BuildRecipe | None = None,
    progress: Progress | None = None,
    *,
    dense: "EngineResult | None" = None,
) -> "EngineResult":
    """Builds a serialized engine in a process of its own; see `BuildRecipe`.

    Beside a compiled model its report.json gets an entry: sparse kernels requested or not,
    the eligible pieces, and what the build told of each 2:4 product; see `join_engine`.

    Args:
        model: an .onnx file, compiled or not; external data beside it.
        engine: the file to write; a .json and a .log of its name go beside it.
        recipe: see `BuildRecipe`.
        progress: called with (steps done, steps in all, what).
        dense: the engine of the original model, whose layers show lost fusions.

    Raises:
        ModelError: the backend refuses the model, in its own words.
        RecipeError: the backend cannot do what the recipe asks.
        RuntimeUnavailable: the backend is missing, crashed or ran out of time.
    """
    engines = require("patch_compile.runtimes.engines", "rtx")
    recipe = recipe or BuildRecipe(engine="tensorrt_rtx")
    result: EngineResult = engines.build_engine(Path(model), Path(engine), recipe, progress)
    if Path(model).name == COMPILED:
        joined = join_engine(model, result, dense)
        asked = asdict(recipe)
        note_engine(
            Path(model), written(result.path), result.sm, result.evidence, joined, asked
        )
    return result


def join_engine(
    model: str | Path, result: "EngineResult", dense: "EngineResult | None" = None
) -> Joined:
    """Tells for every 2:4 product of a compiled model whether an engine runs it sparse.

    `chosen` is told by the build log or the engine's inspector alone; where neither spoke,
    the answer is `unknown`, with the reason.

    Args:
        model: the compiled .onnx file.
        result: of its build.
        dense: the engine of the original model, whose layers show lost fusions.

    Raises:
        ModelError: the model cannot be read.
    """
    sites, nodes = find_pieces(Path(model))
    return join(sites, nodes, result.evidence, None if dense is None else dense.evidence)
