"""A tar with all that a GPU machine needs to build and time engines: bash and trtexec.

patch-compile-bundle/
  run.sh          finds trtexec, builds every model, times them in turns, packs results.tar
  README.txt
  manifest.json   what is in here, and the products to look for in the engines
  commands/       NAME.args, trtexec's arguments, one a line
  models/         NAME/, the .onnx file and its data
  papers/         masks, plan and report, as they were given
"""

import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from patch_compile.errors import ModelError, RecipeError
from patch_compile.io.atomic import staged_folder
from patch_compile.io.onnx_model import external_files, load_model
from patch_compile.recipe import BuildRecipe
from patch_compile.runtimes.engine_file import sha256_of
from patch_compile.runtimes.network_inputs import network_inputs
from patch_compile.runtimes.profiles import profile_shapes, run_shapes, symbol_sizes
from patch_compile.runtimes.sizes import sizes_of
from patch_compile.runtimes.trtexec_command import plain_arguments

__all__ = ["BundledModel", "write_bundle"]

Progress = Callable[[int, int, str], None]

_ROOT = "patch-compile-bundle"
_README = """\
Made by patch-compile. On a machine with an NVIDIA GPU, its driver and TensorRT 10 or 11:

    bash run.sh

It builds an engine of every model in models/ with trtexec, times them in turns, and packs
results.tar (logs, layers, times; engines stay here). Back on the first machine:

    tar -xf results.tar
    patch-compile bench --import results/ --into compiled.onnx
"""


@dataclass(frozen=True)
class BundledModel:
    """One model of a bundle.

    Attributes:
        name: of its folder, as in `compiled` or `dense`.
        path: of the .onnx file; its data lies beside it.
        facts: further entries for the manifest.
        files: name of the model whose files it shares; empty brings its own.
    """

    name: str
    path: Path
    facts: Mapping[str, Any]
    files: str = ""


def write_bundle(
    target: Path,
    models: Sequence[BundledModel],
    recipe: BuildRecipe,
    papers: Sequence[Path] = (),
    progress: Progress | None = None,
) -> Path:
    """Writes a bundle; equal inputs give equal bytes.

    Args:
        target: the .tar file.
        models: what to build.
        recipe: how; its `engine` does not matter.
        papers: files to take along.
        progress: called with (bytes done, bytes in all, file name).

    Raises:
        ModelError: if a model or a paper cannot be read.
        RecipeError: if trtexec cannot do what the recipe asks.
    """
    texts, described = _texts(models, recipe)
    entries = [*_model_files(models), *((f"papers/{path.name}", path) for path in papers)]
    missing = [path for _, path in entries if not path.is_file()]
    if missing:
        raise ModelError(f"bundle | lacks '{missing[0]}'; check its path")
    manifest = {"version": 1, "recipe": asdict(recipe), "models": described}
    texts["manifest.json"] = json.dumps(manifest, indent=1) + "\n"
    total = sum(path.stat().st_size for _, path in entries)
    with (
        staged_folder(target.parent) as stage,
        tarfile.open(stage / target.name, "w") as archive,
    ):
        for name, text in texts.items():
            _add(archive, name, io.BytesIO(text.encode()), len(text.encode()))
        done = 0
        for name, path in entries:
            with path.open("rb") as file:
                _add(archive, name, file, path.stat().st_size)
            done += path.stat().st_size
            if progress is not None:
                progress(done, total, f"packing, {path.name}")
    return target


def _texts(
    models: Sequence[BundledModel], recipe: BuildRecipe
) -> tuple[dict[str, str], list[dict[str, Any]]]:
    script = files("patch_compile.runtimes").joinpath("bundle_run.sh").read_text("utf-8")
    texts = {"run.sh": script, "README.txt": _README}
    described = []
    for model in models:
        inputs = network_inputs(model.path)
        shapes = profile_shapes(inputs, recipe.batch, recipe.sequence)
        file = Path("models") / (model.files or model.name) / model.path.name
        arguments = _arguments(file, recipe, shapes)
        # Kernels and runs are timed at the best point of the ranges.
        best = sizes_of(partial(run_shapes, inputs), recipe.batch[1], recipe.sequence[1])
        texts[f"commands/{model.name}.args"] = "\n".join(arguments) + "\n"
        described.append(
            {
                "name": model.name,
                "file": model.path.name,
                "sha256": sha256_of(model.path),
                "symbols": symbol_sizes(inputs, shapes),
                "batch": best[0],
                "tokens": best[1],
                **model.facts,
            }
        )
    return texts, described


def _arguments(
    file: Path, recipe: BuildRecipe, shapes: dict[str, tuple[tuple[int, ...], ...]]
) -> list[str]:
    precisions = [f"--{name}" for name in recipe.precision]
    arguments = [*plain_arguments(file, recipe, shapes), *precisions, *recipe.flags]
    broken = [argument for argument in arguments if "\n" in argument]
    if broken:
        raise RecipeError(f"flags | hold a line break in {broken[0]!r}; take it out")
    return arguments


def _model_files(models: Sequence[BundledModel]) -> Iterator[tuple[str, Path]]:
    for model in models:
        if model.files:
            continue
        folder = model.path.parent
        data = sorted(external_files(load_model(model.path)))
        for path in (model.path, *data):
            yield f"models/{model.name}/{path.relative_to(folder).as_posix()}", path


def _add(archive: tarfile.TarFile, name: str, file: io.BufferedIOBase, size: int) -> None:
    # The stated fields alone: no owner and no time of this machine.
    entry = tarfile.TarInfo(f"{_ROOT}/{name}")
    entry.size = size
    entry.mode = 0o755 if name.endswith(".sh") else 0o644
    archive.addfile(entry, file)
