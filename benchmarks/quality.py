"""What masks cost in perplexity: methods, geometries and budgets on one model.

    python benchmarks/quality.py MODEL --train TEXT [TEXT ...] --test TEXT [--rows GLOB ...]
        [--tasks FOLDER --limit N]

Every row learns masks on the training texts, applies them to the dense weights and measures
perplexity on the first tokens of the test text: windows of 512 that do not overlap, no special
tokens, a last part dropped. Rows are merged into results/quality.json, so that they can be run
one by one; a learned row's checkpoints and log stay in --runs, and it goes on from there. With
--tasks the same masks answer the first questions of every zero-shot task of the folder.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import RESULTS, write_result
from numpy.typing import NDArray

from patch_compile import LearnRecipe, Masks, evaluate, learn_candidates, save_masks
from patch_compile.evaluation.settings import EvalRecipe
from patch_compile.learn.linears import find_linears
from patch_compile.learn.model import LoadedModel, load_model
from patch_compile.runtimes.perplexity import text_windows

_WINDOW = 512

# Every learned row has about forty minutes of a quiet machine of two cores, see
# learn_step.py for the seconds of a step.
_LEARNED: Mapping[str, Any] = {
    "tile": "weight",
    "precision": "bf16",
    "checkpoint_every": 100,
    "holdout": 8,
}


def _row(sparsity: float, **options: Any) -> LearnRecipe:
    return LearnRecipe(sparsity=(sparsity,), **options)


_ONE_SHOT = ("magnitude", "wanda", "sparsegpt", "descent")

ROWS: Mapping[str, LearnRecipe] = {
    **{f"{method} 2:4": _row(0.5, method=method, tile="weight") for method in _ONE_SHOT},
    **{
        f"{method} unstructured {sparsity:.0%}": _row(
            sparsity, method=method, structure="unstructured"
        )
        for sparsity in (0.25, 0.4, 0.5)
        for method in ("wanda", "sparsegpt")
    },
    **{
        f"{method} {tile} {sparsity:.0%}": _row(sparsity, method=method, tile=tile)
        for method in ("wanda", "descent")
        for sparsity in (0.25, 0.4)
        for tile in ("64x64", "band:64", "column:64", "weight")
    },
    **{
        f"{method} FFN only 37.5%": _row(
            0.5, method=method, tile="weight", include=("*.mlp.*",)
        )
        for method in ("wanda", "descent")
    },
    **{
        f"topk-ste weight {sparsity:.0%}": _row(
            sparsity, method="topk-ste", steps=steps, lr=0.01, **_LEARNED
        )
        for sparsity, steps in ((0.25, 600), (0.4, 400))
    },
    **{
        f"topk-ste from descent weight {sparsity:.0%}": _row(
            sparsity, method="topk-ste", prior="descent", steps=600, lr=0.007, **_LEARNED
        )
        for sparsity in (0.25, 0.4)
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="a Hugging Face folder")
    parser.add_argument("--train", nargs="+", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--rows", nargs="*", default=["*"], help="globs of names")
    parser.add_argument("--runs", type=Path, default=Path("quality-runs"))
    parser.add_argument("--tasks", type=Path, help="folder of task files, NAME.jsonl")
    parser.add_argument("--limit", type=int, default=200, help="questions of each task")
    options = parser.parse_args()
    model = load_model(str(options.model))
    windows = text_windows(
        options.test, options.model / "tokenizer.json", options.tokens, _WINDOW
    )
    dense = loss_of(model, windows)
    row = {"tokens": options.tokens, "perplexity": math.exp(dense)}
    _report("dense", {**row, **_accuracy(None, options)})
    for name, recipe in ROWS.items():
        if any(fnmatch(name, glob) for glob in options.rows):
            row = _measured(model, windows, name, recipe, options)
            _report(name, {**row, "excess": math.log(row["perplexity"]) - dense})


def _measured(
    model: LoadedModel,
    windows: NDArray[np.int64],
    name: str,
    recipe: LearnRecipe,
    options: argparse.Namespace,
) -> dict[str, Any]:
    begun = time.perf_counter()
    folder = options.runs / name.replace(" ", "-").replace(":", "").replace("%", "")
    found = learn_candidates(
        str(options.model),
        options.train,
        recipe,
        run=folder,
        resume=True,
        progress=_Progress(name),
    )
    masks = found.cut(recipe.sparsity[0])
    seconds = time.perf_counter() - begun
    save_masks(masks, folder / "masks.json")
    with masked(model, masks):
        loss = loss_of(model, windows)
    accuracy = _accuracy(masks, options)
    return {
        "tokens": windows.size,
        "perplexity": math.exp(loss),
        "sparsity": masks.sparsity,
        "seconds": round(seconds, 1),
        "recipe": asdict(recipe),
        **accuracy,
    }


def _accuracy(masks: Masks | None, options: argparse.Namespace) -> dict[str, Any]:
    """Shares of right answers, by length where a task has that; empty where none is asked."""
    if options.tasks is None:
        return {}
    names = tuple(sorted(path.stem for path in options.tasks.glob("*.jsonl")))
    recipe = EvalRecipe(tasks=names, limit=options.limit)
    found = evaluate(options.model, recipe, masks=masks, task_dir=options.tasks)
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
