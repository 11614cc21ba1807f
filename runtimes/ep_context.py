"""A model whose graph is an engine that ONNX Runtime built: it opens without building again.

Such a file (a graph of EPContext nodes) belongs to one GPU, one driver and one release of
TensorRT or TensorRT-RTX.
"""

from pathlib import Path

from patch_compile.errors import ModelError, RecipeError
from patch_compile.io.atomic import staged_folder
from patch_compile.recipe import BenchRecipe
from patch_compile.runtimes.onnxruntime import session_options, start_session
from patch_compile.runtimes.providers import Declared, EngineWishes, check_assigned, providers

__all__ = ["export_context"]

_BUILDERS = ("ort-tensorrt", "ort-rtx")


def export_context(
    model: str | Path, target: str | Path, recipe: BenchRecipe, cache: Path | None = None
) -> Path:
    """Builds a model's engines with an ONNX Runtime provider and writes them as a model.

    Args:
        model: the .onnx file; external data beside it.
        target: the .onnx file to write, with the engines inside.
        recipe: its runtime (`ort-tensorrt` or `ort-rtx`), batch, tokens and `sparse`.
        cache: folder where TensorRT keeps timings.

    Returns:
        The path written.

    Raises:
        ModelError: if the provider cannot build the model, or writes no context.
        RecipeError: if the runtime builds no engines.
        RuntimeUnavailable: if the provider is missing or broken, or takes no node.
    """
    model, target = Path(model), Path(target)
    if recipe.runtime not in _BUILDERS:
        raise RecipeError(
            f"runtime | is {recipe.runtime}, which builds no engines; choose one of "
            f"{', '.join(_BUILDERS)}"
        )
    with staged_folder(target.parent) as stage:
        written = stage / target.name
        wishes = EngineWishes(
            Declared.of(model),
            batch=recipe.batch,
            tokens=(min(recipe.tokens), max(recipe.tokens)),
            sparse=recipe.sparse,
            cache=cache,
            context=written,
        )
        _build(model, recipe, wishes)
        if not written.is_file():
            raise ModelError(
                f"model '{model}' | was built, but {recipe.runtime} wrote no file"
            )
    return target


def _build(model: Path, recipe: BenchRecipe, wishes: EngineWishes) -> None:
    options = session_options(optimise=True)
    if recipe.runtime == "ort-rtx":
        options.add_session_config_entry("ep.context_enable", "1")
        options.add_session_config_entry("ep.context_file_path", str(wishes.context))
        options.add_session_config_entry("ep.context_embed_mode", "1")
    session = start_session(
        f"model '{model}'", str(model), options, providers(recipe.runtime, wishes)
    )
    check_assigned(session, recipe.runtime)
