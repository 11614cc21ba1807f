"""How good is a model, dense or masked? Perplexity and zero-shot accuracy, torch or ONNX."""

from collections.abc import Callable
from pathlib import Path

from patch_compile._require import require
from patch_compile.errors import RecipeError
from patch_compile.evaluation.harness import load_tasks, run_tasks
from patch_compile.evaluation.results import Evaluation, PerplexityResult
from patch_compile.evaluation.scorers import Scorer, open_scorer
from patch_compile.evaluation.settings import EvalRecipe
from patch_compile.tiles.masks import Masks

__all__ = ["Evaluation", "evaluate"]

Progress = Callable[[int, int, str], None]


def evaluate(
    model: str | Path,
    recipe: EvalRecipe | None = None,
    *,
    masks: str | Path | Masks | None = None,
    data: str | Path | None = None,
    task_dir: str | Path | None = None,
    tokenizer: str | Path | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Takes the perplexity of a model on a text, and its accuracy on zero-shot tasks.

    torch and ONNX models share tokens, windows and every step behind the logits, so both give
    the same numbers to the rounding of their kernels.

    Args:
        model: an .onnx file, compiled or not, a Hugging Face directory, a hub id, or a GGUF
            file.
        recipe: see `EvalRecipe`.
        masks: masks or the path of a mask file; None evaluates the model as it is.
        data: UTF-8 text for the perplexity.
        task_dir: folder of task files, `<task>.jsonl`; see `local_tasks`.
        tokenizer: `tokenizer.json`; by default the model's own.
        progress: called with (steps done, steps in all, what).

    Raises:
        RecipeError: there is neither text nor task, the text is too short, or a task is
            unknown.
        ModelError: the model cannot be loaded or run, or is no causal language model.
        MaskError: the masks do not belong to the model.
        RuntimeUnavailable: onnxruntime, torch or lm-evaluation-harness is missing.
    """
    recipe = recipe or EvalRecipe()
    if data is None and not recipe.tasks:
        raise RecipeError("data | and tasks are both empty; give --data TEXT or --tasks NAMES")
    if data is not None:
        # A text that cannot be read shows before the wait for the model.
        require("patch_compile.runtimes.perplexity", "cpu").read_text(Path(data))
    folder = None if task_dir is None else Path(task_dir)
    tasks = load_tasks(recipe.tasks, folder) if recipe.tasks else {}
    own = None if tokenizer is None else Path(tokenizer)
    scorer = open_scorer(str(model), masks, own, progress)
    return Evaluation(
        str(model),
        scorer.sparsity,
        None if data is None else _perplexity(scorer, Path(data), recipe, progress),
        run_tasks(scorer, tasks, recipe.limit, progress) if tasks else {},
        scorer.unapplied,
    )


def _perplexity(
    scorer: Scorer, data: Path, recipe: EvalRecipe, progress: Progress | None
) -> PerplexityResult:
    runtime = require("patch_compile.runtimes.perplexity", "cpu")
    stride = recipe.window if recipe.stride is None else recipe.stride
    ids = runtime.text_tokens(data, scorer.encode, recipe.tokens)
    windows = runtime.cut_windows(ids, recipe.window, stride)
    return PerplexityResult(
        value=runtime.strided_perplexity(scorer.score, windows, stride, progress),
        predictions=runtime.predictions(windows, stride),
        windows=len(windows),
        window=recipe.window,
        stride=stride,
        dropped=len(ids) - (len(windows) - 1) * stride - recipe.window,
    )
