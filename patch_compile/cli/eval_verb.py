"""The verb `eval`: parses, calls the API, prints."""

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from patch_compile.cli.console import out, progress_bar
from patch_compile.cli.unused import refuse_unused
from patch_compile.errors import RecipeError
from patch_compile.evaluation.evaluate import evaluate
from patch_compile.evaluation.results import PerplexityResult, TaskResult
from patch_compile.evaluation.settings import EvalRecipe

__all__ = ["eval_"]

_EVAL = EvalRecipe()


def eval_(
    model: str,
    /,
    *,
    masks: Path | None = None,
    data: Path | None = None,
    task_dir: Path | None = None,
    tokenizer: Path | None = None,
    recipe: Annotated[EvalRecipe, Parameter(name="*")] = _EVAL,
    json_: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Take the perplexity and the zero-shot accuracy of MODEL, dense or masked.

    Give a text for the perplexity (`--data`), tasks (`--tasks`), or both. torch and ONNX
    models get the same tokens in the same windows, so that their numbers can be compared.

    Args:
        model: a causal language model: an .onnx file, a Hugging Face directory, a hub id, or
            a GGUF file.
        masks: apply these first; a compiled .onnx holds its own.
        data: text (UTF-8) for the perplexity. Windows begin without a special token; a rest
            of the text that fills no window is dropped, and told.
        task_dir: folder of task files, `<task>.jsonl`; other tasks come from
            lm-evaluation-harness.
        tokenizer: tokenizer.json; by default MODEL's own.
        json_: print everything as JSON.
    """
    if not recipe.tasks:
        refuse_unused(recipe, "tasks", ["limit"])
        if task_dir is not None:
            raise RecipeError("task-dir | is given, and no tasks are; give --tasks as well")
    with progress_bar() as progress:
        found = evaluate(
            model,
            recipe,
            masks=masks,
            data=data,
            task_dir=task_dir,
            tokenizer=tokenizer,
            progress=progress,
        )
    if json_:
        out.print(json.dumps(found.to_json(), indent=1, allow_nan=False))
        return
    if found.sparsity is not None:
        out.print(f"masks: sparsity {found.sparsity:.4%}")
    if found.perplexity is not None:
        out.print(_perplexity_line(found.perplexity))
    for name, result in found.tasks.items():
        out.print(_task_line(name, result))
    for name, reason in found.unapplied.items():
        out.print(f"not applied: mask {name} ({reason})")


def _perplexity_line(found: PerplexityResult) -> str:
    return (
        f"perplexity {found.value:.4f}  ({found.predictions} predictions: {found.windows} "
        f"windows of {found.window} tokens, stride {found.stride}; the last {found.dropped} "
        "tokens fill no window and are dropped)"
    )


def _task_line(name: str, result: TaskResult) -> str:
    metrics = ", ".join(
        f"{metric} {found.value:.4f}"
        + ("" if found.stderr is None else f" ± {found.stderr:.4f}")
        for metric, found in result.metrics.items()
    )
    return f"{name}: {metrics}  ({result.questions} questions)"
