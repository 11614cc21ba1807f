"""What masks cost in perplexity: methods, geometries and budgets on one model.

    python benchmarks/quality.py MODEL --train TEXT [TEXT ...] --test TEXT [--rows GLOB ...]
        [--tasks FOLDER --limit N] [--label WORD] [--precision fp32]

Every run learns masks on the training texts. Each sparsity cut from it is a row: the masks are
applied to the dense weights, and perplexity is measured on the first tokens of the test text,
in windows of 512 that do not overlap, no special tokens, a last part dropped. Rows are merged
into results/quality.json, so that runs can be done one by one; a learned run's checkpoints and
log stay in --runs, and it goes on from there. With --tasks the same masks answer the first
questions of every zero-shot task of the folder. Another form of the model, as `permute` writes
it, gets rows of its own by --label permuted.
"""

import argparse
import csv
import json
import math
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import RESULTS, write_result
from numpy.typing import NDArray

from patch_compile import LearnRecipe, Masks, evaluate, learn_candidates
from patch_compile.evaluation.settings import EvalRecipe
from patch_compile.learn.candidates import Candidates
from patch_compile.learn.linears import find_linears, prunable
from patch_compile.learn.model import LoadedModel, load_model
from patch_compile.runtimes.perplexity import text_windows

_WINDOW = 512

# What ends the name of a run of one sparsity of several.
_PERCENT = re.compile(r" \d+%$")

_ONE_SHOT = ("magnitude", "wanda", "sparsegpt", "descent")

# Where learned tiles are compared, and the options of each geometry.
_GEOMETRIES: Mapping[str, Mapping[str, Any]] = {
    "64x64": {"tile": "64x64"},
    "band:64": {"tile": "band:64"},
    "column:64": {"tile": "column:64"},
    "weight": {"tile": "weight"},
    "tied": {"tile": "weight", "tie": ("mlp", "heads")},
}

_LEARNED: Mapping[str, Any] = {"precision": "bf16", "checkpoint_every": 50, "holdout": 8}

# About forty minutes of a quiet machine of two cores.
_LONG: Mapping[str, Any] = {**_LEARNED, "method": "topk-ste", "steps": 800, "lr": 0.01}

# About ten: as many steps as each method takes in that time, see learn_step.py.
_STEPS: Mapping[str, int] = {
    "patch-tile": 200,
    "patch-joint": 120,
    "maskllm": 100,
    "leap": 150,
    "topk-ste": 200,
}


def _run(*sparsities: float, **options: Any) -> LearnRecipe:
    return LearnRecipe(sparsity=sparsities, **options)


def _brief(method: str, *sparsities: float, **options: Any) -> LearnRecipe:
    return _run(*sparsities, method=method, steps=_STEPS[method], **_LEARNED, **options)


# Each gives a row for every sparsity, cut from one run.
RUNS: Mapping[str, LearnRecipe] = {
    **{f"{method} 2:4": _run(0.5, method=method, tile="weight") for method in _ONE_SHOT},
    # New weights are for one sparsity.
    "sparsegpt 2:4, new weights": _run(0.5, method="sparsegpt", tile="weight", update=True),
    **{
        f"sparsegpt 64x64, new weights {percent}%": _run(
            percent / 100, method="sparsegpt", tile="64x64", update=True
        )
        for percent in (25, 35, 45)
    },
    **{
        f"{method} unstructured": _run(
            0.25, 0.35, 0.45, 0.5, method=method, structure="unstructured"
        )
        for method in ("wanda", "sparsegpt")
    },
    **{
        f"wanda {name}": _run(0.25, 0.35, 0.45, method="wanda", **options)
        for name, options in _GEOMETRIES.items()
        if name != "weight"
    },
    **{
        f"{method} weight": _run(0.25, 0.35, 0.375, 0.4, 0.45, method=method, tile="weight")
        for method in ("wanda", "descent")
    },
    **{
        f"{method} FFN only": _run(0.5, method=method, tile="weight", include=("*.mlp.*",))
        for method in ("wanda", "descent")
    },
    **{
        f"{method} {name}": _brief(method, 0.25, 0.35, 0.45, **options)
        for method in ("patch-tile", "patch-joint", "topk-ste")
        for name, options in _GEOMETRIES.items()
    },
    "maskllm 2:4": _brief("maskllm", 0.5, tile="weight"),
    "topk-ste 2:4": _brief("topk-ste", 0.5, tile="weight"),
    "leap": _brief("leap", 0.25, 0.35, 0.45),
    **{
        f"topk-ste 800 steps {percent}%": _run(
            percent / 100, tile="weight", samples=64, **_LONG
        )
        for percent in (25, 40)
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="a Hugging Face folder")
    parser.add_argument("--train", nargs="+", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--rows", nargs="*", default=["*"], help="globs of names of runs")
    parser.add_argument("--runs", type=Path, default=Path("quality-runs"))
    parser.add_argument("--tasks", type=Path, help="folder of task files, NAME.jsonl")
    parser.add_argument("--limit", type=int, default=200, help="questions of each task")
    parser.add_argument(
        "--label", help="before the names of the rows: of another form of MODEL"
    )
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    options = parser.parse_args()
    model = load_model(str(options.model))
    windows = text_windows(
        options.test, options.model / "tokenizer.json", options.tokens, _WINDOW
    )
    dense = loss_of(model, windows)
    row = {"tokens": options.tokens, "perplexity": math.exp(dense)}
    _report(_named("dense", options), {**row, **_accuracy(options.model, None, options)})
    for name, recipe in RUNS.items():
        if any(fnmatch(name, glob) for glob in options.rows):
            if recipe.learns:
                recipe = replace(recipe, precision=options.precision)
            _run_rows(_named(name, options), recipe, model, windows, dense, options)


def _named(name: str, options: argparse.Namespace) -> str:
    return f"{options.label} {name}" if options.label else name


def _run_rows(
    name: str,
    recipe: LearnRecipe,
    model: LoadedModel,
    windows: NDArray[np.int64],
    dense: float,
    options: argparse.Namespace,
) -> None:
    found, weights, known = _learned(name, recipe, options)
    pruned = load_model(str(weights)) if recipe.update else model
    for sparsity in recipe.sparsity:
        masks = found.cut(sparsity)
        row = _measured(pruned, windows, masks, sparsity)
        row |= _accuracy(weights, masks, options)
        row["excess"] = math.log(row["perplexity"]) - dense
        # A run of one sparsity lends its row its name.
        several = f" {sparsity * 100:g}%" if len(recipe.sparsity) > 1 else ""
        _report(f"{name}{several}", {"run": _PERCENT.sub("", name), **row, **known})


def _learned(
    name: str, recipe: LearnRecipe, options: argparse.Namespace
) -> tuple[Candidates, Path, dict[str, Any]]:
    """Learns, or goes on; also returns whose weights, and what every row of the run says."""
    begun = time.perf_counter()
    folder = options.runs / re.sub("[:%,]", "", name).replace(" ", "-")
    found = learn_candidates(
        str(options.model),
        options.train,
        recipe,
        run=folder if recipe.learns else None,
        resume=recipe.learns,
        checkpoint=folder if recipe.update else None,
        progress=_Progress(name),
    )
    # A run may have been stopped: its log knows all its steps.
    seconds = _logged(folder) if recipe.learns else time.perf_counter() - begun
    known = {"seconds": round(seconds, 1), "recipe": asdict(recipe)}
    return found, folder if recipe.update else options.model, known


def _logged(folder: Path) -> float:
    """Returns the seconds of all steps of a run."""
    with (folder / "log.csv").open(encoding="utf-8", newline="") as file:
        return sum(float(row["seconds"] or 0) for row in csv.DictReader(file))


def _measured(
    model: LoadedModel, windows: NDArray[np.int64], masks: Masks, asked: float
) -> dict[str, Any]:
    whole = sum(math.prod(linear.shape) for linear in prunable(model.module).values())
    pruned = sum(math.prod(mask.shape) for mask in masks.weights.values())
    share = pruned / whole  # Sparsities are of all linears, not of `include` alone.
    with masked(model, masks):
        loss = loss_of(model, windows)
    return {
        "tokens": windows.size,
        "perplexity": math.exp(loss),
        "asked": asked * share,
        "sparsity": masks.sparsity * share,
    }


def _accuracy(
    weights: Path, masks: Masks | None, options: argparse.Namespace
) -> dict[str, Any]:
    """Shares of right answers, by length where a task has that; empty where none is asked."""
    if options.tasks is None:
        return {}
    names = tuple(sorted(path.stem for path in options.tasks.glob("*.jsonl")))
    recipe = EvalRecipe(tasks=names, limit=options.limit)
    found = evaluate(weights, recipe, masks=masks, task_dir=options.tasks)
    shares = {
        name: (task.metrics.get("acc_norm") or task.metrics["acc"]).value
        for name, task in found.tasks.items()
    }
    return {"accuracy": shares, "questions": options.limit}


class _Progress:
    """Prints a line a minute."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._last = 0.0

    def __call__(self, done: int, total: int, what: str) -> None:
        now = time.monotonic()
        if now - self._last > 60:
            self._last = now
            print(f"{self._name} | {done}/{total} {what}", flush=True)


@contextmanager
def masked(model: LoadedModel, masks: Masks) -> Iterator[None]:
    """Applies masks to the weights, and gives them back."""
    linears = find_linears(model.module)
    before = {name: linears[name].weight.detach().clone() for name in masks.weights}
    with torch.no_grad():
        for name, mask in masks.weights.items():
            linear = linears[name]
            linear.matrix(linear.weight).mul_(torch.from_numpy(mask.keep()))
    try:
        yield
    finally:
        with torch.no_grad():
            for name, weight in before.items():
                linears[name].weight.copy_(weight)


@torch.no_grad()
def loss_of(model: LoadedModel, windows: NDArray[np.int64]) -> float:
    """Mean next-token loss in nats, all windows alike."""
    losses = []
    for window in torch.from_numpy(windows):
        logits = model.module(input_ids=window[None], use_cache=False).logits
        losses.append(torch.nn.functional.cross_entropy(logits[0, :-1].float(), window[1:]))
    return float(torch.stack(losses).double().mean())


def _report(name: str, row: dict[str, Any]) -> None:
    path = RESULTS / "quality.json"
    rows = json.loads(path.read_text("utf-8"))["rows"] if path.exists() else {}
    rows[name] = row
    write_result("quality", {"rows": rows})
    print(f"{name:28} perplexity {row['perplexity']:8.3f}  excess {row.get('excess', 0):.4f}")


if __name__ == "__main__":
    main()
