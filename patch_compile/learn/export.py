"""Models as ONNX graphs in which every linear says which parameter it multiplies by.

N: out features. K: in features.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from patch_compile._require import require
from patch_compile.errors import MaskError, ModelError, RecipeError
from patch_compile.io.atomic import staged_folder
from patch_compile.io.digests import digest, digest_key
from patch_compile.io.save_model import save_model
from patch_compile.learn._progress import Progress, tell
from patch_compile.learn._quiet import first_line, quiet
from patch_compile.learn.linears import Linear, find_linears, prunable
from patch_compile.learn.model import DTYPES, LoadedModel, save_companions
from patch_compile.learn.signatures import Signature, name_axes, plain, with_past
from patch_compile.recipe import ExportRecipe
from patch_compile.tiles.masks import Masks
from patch_compile.tiles.weight_mask import WeightMask

__all__ = ["WEIGHT", "check_masks", "export_onnx"]

# Key of node metadata that binds a mask to its weight.
WEIGHT = "patch_compile.weight"

# torch's exporter writes no older opset, and onnxruntime 1.32 reads no newer one.
_OPSETS = range(18, 25)

# What is kept of the exporter's notes: the rest holds source paths of the machine that
# exported, or repeats the graph.
_NOTES = frozenset({WEIGHT, "namespace", "pkg.torch.onnx.name_scopes"})


def export_onnx(
    model: LoadedModel,
    output: Path,
    recipe: ExportRecipe,
    masks: Masks | None = None,
    progress: Progress | None = None,
) -> Path:
    """Writes a model as ONNX, with config.json and the tokenizer beside it.

    The graph maps `input_ids`, int64 (batch, sequence), to `logits` in the model's element
    type, (batch, sequence, vocabulary); with `recipe.with_past` it has a cache as well, see
    `signatures.with_past`. Weights lie in `<output>.data`. The same model gives the same
    bytes. Masks are not applied: that is the compiler's part.

    Args:
        model: loaded in `recipe.dtype`.
        output: ends in `.onnx`.
        recipe: what is wanted.
        masks: checked against the model first, so that a misfit shows before the wait.
        progress: called with (done, total, what).

    Returns:
        `output`.

    Raises:
        RecipeError: if the recipe, the output or the model's element type do not fit.
        MaskError: if a mask is for another weight.
        ModelError: if torch cannot export the model, or the files cannot be written.
    """
    _check_recipe(model, output, recipe)
    linears, wanted = find_linears(model.module), prunable(model.module)
    if masks is not None:
        check_masks(model, linears, masks)
    tell(progress, 0, 2, "tracing the model")
    with quiet():
        signature = with_past(model) if recipe.with_past else plain(model)
        program = _traced(model, recipe, signature)
        _label(program.model, linears)
        tell(progress, 1, 2, "simplifying the graph")
        program.optimize()
    graph: ir.Model = program.model
    _check_labels(graph, wanted)
    name_axes(graph)
    _drop_notes(graph)
    with staged_folder(output.parent) as stage:
        save_model(graph, stage / output.name, progress)
        save_companions(model, stage)
        if recipe.with_past:
            # It names the tokens that end a text, where config.json may name one alone.
            model.module.generation_config.save_pretrained(stage)
    tell(progress, 2, 2, f"wrote {output.name}")
    return output


def _check_recipe(model: LoadedModel, output: Path, recipe: ExportRecipe) -> None:
    if output.suffix != ".onnx":
        raise RecipeError(f"output '{output}' | is no ONNX path; expected one ending in .onnx")
    if recipe.opset not in _OPSETS:
        raise RecipeError(
            f"opset | is {recipe.opset}; expected {_OPSETS[0]} to {_OPSETS[-1]}, "
            "which torch writes and onnxruntime reads"
        )
    if model.dtype != DTYPES[recipe.dtype]:
        raise RecipeError(
            f"dtype | is {recipe.dtype} for a model loaded as {model.dtype}; load it as "
            f"{recipe.dtype}"
        )


def check_masks(model: LoadedModel, linears: Mapping[str, Linear], masks: Masks) -> None:
    """Checks that masks are of a model's linears.

    Raises:
        MaskError: if one names no linear, or was made for another weight.
    """
    for mask in masks.weights.values():
        if mask.name not in linears:
            raise MaskError(
                f"mask '{mask.name}' | names no linear of model '{model.name}', which has "
                f"{list(linears)[:4]}; the masks belong to another model"
            )
        _check_mask(mask, linears[mask.name], model.dtype)


def _check_mask(mask: WeightMask, linear: Linear, dtype: str) -> None:
    if mask.shape != linear.shape:
        raise MaskError(
            f"mask '{mask.name}' | has shape {mask.shape} (N, K), its weight {linear.shape}; "
            "the masks belong to another model"
        )
    if not _is_made_for(mask, linear, dtype):
        raise MaskError(
            f"mask '{mask.name}' | was made for other values than this {dtype} weight has; "
            "learn the masks again for this model"
        )


def _is_made_for(mask: WeightMask, linear: Linear, dtype: str) -> bool:
    """Compares digests in the layout the weight is stored in, if the mask has that one."""
    torch = require("torch", "learn")
    stored = linear.weight.detach().cpu()
    # numpy has no bfloat16; a digest is of bytes, whatever they are called.
    bits = stored.view(torch.uint16) if stored.element_size() == 2 else stored
    for transposed in (linear.transposed, not linear.transposed):
        known = mask.digests.get(digest_key(dtype, transposed=transposed))
        if known is not None:
            turned = transposed != linear.transposed
            return known == digest(bits.numpy().T if turned else bits.numpy())
    return True


def _traced(model: LoadedModel, recipe: ExportRecipe, signature: Signature) -> Any:
    """Returns torch's ONNX program, whose initializers still have their parameters' names."""
    torch = require("torch", "learn")
    try:
        with torch.no_grad(), signature.prepared():
            return torch.onnx.export(
                model.module,
                kwargs=dict(signature.arguments),
                dynamo=True,
                optimize=False,
                verbose=False,
                opset_version=recipe.opset,
                dynamic_shapes=dict(signature.axes),
                input_names=signature.inputs,
                output_names=signature.outputs,
            )
    except torch.onnx.OnnxExporterError as error:
        raise ModelError(
            f"model '{model.name}' | cannot be exported by torch {torch.__version__}: "
            f"{first_line(error.__cause__ or error)}; try another opset, or export it with "
            "another tool and compile that"
        ) from error


def _label(model: ir.Model, linears: Mapping[str, Linear]) -> None:
    """Writes on every product by a parameter that parameter's name.

    Done before simplification, which turns weights round and renames them.
    """
    for name, value in model.graph.initializers.items():
        if name in linears:
            for node in _products(value):
                node.metadata_props[WEIGHT] = name


def _products(value: ir.Value) -> Iterator[ir.Node]:
    """Yields the MatMul and Gemm nodes whose second operand is `value`, turned or not."""
    for node, index in value.uses():
        if node.op_type == "Transpose":
            yield from _products(node.outputs[0])
        elif node.op_type in ("MatMul", "Gemm") and index == 1:
            yield node


def _check_labels(model: ir.Model, wanted: Iterable[str]) -> None:
    labels = {node.metadata_props.get(WEIGHT) for node in model.graph}
    lost = [name for name in wanted if name not in labels]
    if lost:
        raise ModelError(
            f"graph | has no MatMul or Gemm for {len(lost)} linears of the model: {lost[:4]}; "
            "expected one each; this architecture is not supported"
        )


def _drop_notes(model: ir.Model) -> None:
    _keep_notes(model.metadata_props)
    for graph in model.graphs():
        _keep_notes(graph.metadata_props)
        for value in (*graph.inputs, *graph.initializers.values()):
            _keep_notes(value.metadata_props)
        for node in graph:
            _keep_notes(node.metadata_props)
            for value in node.outputs:
                _keep_notes(value.metadata_props)


def _keep_notes(notes: dict[str, str]) -> None:
    for key in notes.keys() - _NOTES:
        del notes[key]
