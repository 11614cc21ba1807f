"""Zero-shot tasks through lm-evaluation-harness.

The harness ships no type information; it is typed here by what is used of it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from patch_compile._hush import hushed
from patch_compile._require import require
from patch_compile.errors import RecipeError
from patch_compile.evaluation.answers import Answers
from patch_compile.evaluation.local_tasks import LocalTask, find_task
from patch_compile.evaluation.results import Metric, TaskResult
from patch_compile.evaluation.scorers import Scorer

__all__ = ["Tasks", "load_tasks", "run_tasks"]

Progress = Callable[[int, int, str], None]

# Tasks of the harness by name; a group of them is itself such a mapping.
Tasks = Mapping[Any, Any]

_EXTRA = "eval"
_TALKERS = ("lm_eval", "datasets", "huggingface_hub")


def load_tasks(names: Sequence[str], folder: Path | None) -> Tasks:
    """Finds tasks: local files first, the harness's own registry for all others.

    Args:
        names: of the tasks.
        folder: of local task files; None for none.

    Raises:
        RecipeError: a name is unknown, its data cannot be fetched, or a file is malformed.
        RuntimeUnavailable: lm-evaluation-harness is missing.
    """
    local = {name: find_task(name, folder) for name in dict.fromkeys(names)}
    require("lm_eval", _EXTRA)
    found: dict[Any, Any] = {
        name: _harness_task(task) for name, task in local.items() if task is not None
    }
    for name in (name for name, task in local.items() if task is None):
        found |= _registered(name, folder)
    for task in _leaves(found):
        task.set_config("num_fewshot", 0)
        task.set_fewshot_seed(0)
    return found


def run_tasks(
    scorer: Scorer, tasks: Tasks, limit: int | None, progress: Progress | None = None
) -> dict[str, TaskResult]:
    """Asks a model all questions of some tasks.

    Args:
        scorer: the model.
        tasks: see `load_tasks`; they serve once.
        limit: first questions of each task; None takes all.
        progress: called with (answers done, answers in all, "answers").

    Returns:
        What was found, by the names of the tasks, and of groups that have a score.

    Raises:
        RecipeError: a task is not multiple choice.
        ModelError: the model cannot be run.
    """
    evaluator = require("lm_eval.evaluator", _EXTRA)
    base = require("lm_eval.api.model", _EXTRA).LM
    model = type("PatchCompileModel", (Answers, base), {})(scorer, progress)
    with hushed(_TALKERS):
        found = evaluator.evaluate(lm=model, task_dict=tasks, limit=limit, log_samples=False)
    # A group that adds nothing up has no numbers of its own.
    known = {name: _metrics(numbers) for name, numbers in found["results"].items()}
    return {n: TaskResult(_questions(found, n), told) for n, told in known.items() if told}


def _questions(found: Mapping[str, Any], name: str) -> int:
    """The questions that a task was asked, or all tasks of a group."""
    samples = found["n-samples"].get(name)
    if samples is not None:
        return int(samples["effective"])
    return sum(_questions(found, part) for part in found["group_subtasks"].get(name, ()))


def _metrics(numbers: Mapping[str, Any]) -> dict[str, Metric]:
    """Reads `acc,none` with `acc_stderr,none`, which is "N/A" of a single question."""
    found: dict[str, Metric] = {}
    for key, value in numbers.items():
        name, comma, chain = key.partition(",")
        if comma and not name.endswith("_stderr") and isinstance(value, float | int):
            error = numbers.get(f"{name}_stderr,{chain}")
            found[name] = Metric(value, error if isinstance(error, float | int) else None)
    return found


def _harness_task(task: LocalTask) -> Any:
    dataset = require("datasets", _EXTRA).Dataset.from_list(list(task.rows))
    metrics = [
        {"metric": name, "aggregation": "mean", "higher_is_better": True}
        for name in task.metrics
    ]
    config = {
        "task": task.name,
        "output_type": "multiple_choice",
        "test_split": "test",
        "custom_dataset": lambda **_: {"test": dataset},
        "doc_to_text": task.text,
        "doc_to_target": task.target,
        "doc_to_choice": task.choices,
        "metric_list": metrics,
    }
    with hushed(_TALKERS):
        return require("lm_eval.api.task", _EXTRA).ConfigurableTask(config=config)


def _registered(name: str, folder: Path | None) -> Tasks:
    try:
        with hushed(_TALKERS):
            found: Tasks = require("lm_eval.tasks", _EXTRA).get_task_dict([name])
    except (KeyError, ValueError, OSError, RuntimeError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        looked = "" if folder is None else f"is no file of '{folder}', and "
        raise RecipeError(
            f"task '{name}' | {looked}cannot be had from lm-evaluation-harness: {reason}; "
            "choose one that `lm-eval ls tasks` lists, or give its file by --task-dir"
        ) from error
    return found


def _leaves(tasks: Tasks) -> Iterator[Any]:
    for task in tasks.values():
        if isinstance(task, Mapping):
            yield from _leaves(task)
        else:
            yield task
