"""Full learning runs, with seeds, on a model so small that they take minutes.

    python benchmarks/small_quality.py MODEL --stories TINYSTORIES.jsonl [--rows GLOB ...]

2,000 steps of one window each, as PATCH's authors run it, on four fifths of the stories; loss
on the last fifth, in windows of 256. `plain` is the paper's equations with the authors'
schedules, warm-up and clipping in whole tensors (plain_patch.py), from random tiles and the
patterns that ours starts from, given the same text, steps and seeds, and cut to the same
sparsity by its logits. `permuted` rows are of the model after `permute`, on the same
text with the same seed. Rows are merged into results/small_quality.json.
"""

import argparse
import json
import math
import tempfile
import time
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from measuring import RESULTS, write_result
from numpy.typing import NDArray
from plain_patch import PlainMasked, replace_linears
from quality import loss_of, masked
from transformers import get_cosine_schedule_with_warmup

from patch_compile import LearnRecipe, PermuteRecipe, learn_candidates, permute_channels
from patch_compile.learn.linears import prunable
from patch_compile.learn.model import LoadedModel, load_model
from patch_compile.learn.text import windows

_STEPS, _WINDOW, _TILE = 2_000, 48, 16
_SPARSITIES = (0.25, 0.45)
_SEEDS = (0, 1)
# Steps, of the authors' trainer.
_WARM_UP = 5

# The recipes beside `method` and `sparsity`; `plain` ones are not ours.
_LEARNED: Mapping[str, Mapping[str, Any]] = {
    "patch-tile": {"method": "patch-tile"},
    "patch-tile, distilled": {"method": "patch-tile", "distill": True},
    "patch-joint": {"method": "patch-joint"},
    "patch-joint, distilled": {"method": "patch-joint", "distill": True},
    "topk-ste": {"method": "topk-ste", "lr": 0.01},
    "topk-ste, whole weights": {"method": "topk-ste", "lr": 0.01, "tile": "weight"},
    "topk-ste from descent": {"method": "topk-ste", "lr": 0.01, "prior": "descent"},
    "topk-ste, next token": {"method": "topk-ste", "lr": 0.01, "distill": False},
    "leap": {"method": "leap"},
    "wanda": {"method": "wanda"},
    "descent": {"method": "descent"},
    "sparsegpt": {"method": "sparsegpt"},
    "permuted wanda": {"method": "wanda"},
    "permuted topk-ste": {"method": "topk-ste", "lr": 0.01},
    "permuted topk-ste, whole weights": {"method": "topk-ste", "lr": 0.01, "tile": "weight"},
    "permuted patch-joint, distilled": {"method": "patch-joint", "distill": True},
}
_PLAIN = ("plain patch-tile", "plain patch-joint")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a Hugging Face folder")
    parser.add_argument("--stories", type=Path, required=True)
    parser.add_argument("--rows", nargs="*", default=["*"], help="globs of names")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        train, test = _split(options.stories, Path(folder))
        judged = windows([test], load_model(options.model).tokenizer, _most(test), 256, 0)
        dense = loss_of(load_model(options.model), judged)
        _report("dense", {"loss": dense})
        for name in (*_PLAIN, *_LEARNED):
            for sparsity in _SPARSITIES:
                row = f"{name} {sparsity:.0%}"
                if any(fnmatch(row, glob) for glob in options.rows):
                    _report(row, _row(options.model, train, judged, name, sparsity, dense))


def _split(stories: Path, folder: Path) -> tuple[Path, Path]:
    lines = stories.read_text("utf-8").splitlines(keepends=True)
    cut = len(lines) * 4 // 5
    for name, part in (("train", lines[:cut]), ("test", lines[cut:])):
        (folder / f"{name}.jsonl").write_text("".join(part), "utf-8")
    return folder / "train.jsonl", folder / "test.jsonl"


def _most(text: Path) -> int:
    """Windows of 256 that a text surely has: its tokens are a little over two bytes each."""
    return text.stat().st_size // 640


def _row(
    model: str,
    train: Path,
    judged: NDArray[np.int64],
    name: str,
    sparsity: float,
    dense: float,
) -> dict[str, Any]:
    found, begun = [], time.perf_counter()
    for seed in _SEEDS:
        run = _plain if name in _PLAIN else _ours
        found.append(run(model, train, judged, name, sparsity, seed) - dense)
    seconds = (time.perf_counter() - begun) / len(_SEEDS)
    return {"excess": mean(found), "by_seed": found, "seconds_a_seed": round(seconds, 1)}


def _ours(
    model: str, train: Path, judged: NDArray[np.int64], name: str, sparsity: float, seed: int
) -> float:
    options: dict[str, Any] = {"tile": f"{_TILE}x{_TILE}", "distill": "topk" in name}
    options |= {"steps": _STEPS, "window": _WINDOW, "holdout": 0, "checkpoint_every": _STEPS}
    recipe = LearnRecipe(
        **{**options, **_LEARNED[name], "sparsity": (sparsity,), "seed": seed}
    )
    with tempfile.TemporaryDirectory() as folder:
        if name.startswith("permuted"):
            order = PermuteRecipe(samples=64, window=_WINDOW, seed=seed)
            permute_channels(model, train, f"{folder}/permuted", order)
            model = f"{folder}/permuted"
        run = f"{folder}/run" if recipe.learns else None
        found = learn_candidates(model, [train], recipe, run=run)
        loaded = load_model(model)
    with masked(loaded, found.cut(sparsity)):
        return loss_of(loaded, judged)


def _plain(
    model: str, train: Path, judged: NDArray[np.int64], name: str, sparsity: float, seed: int
) -> float:
    torch.manual_seed(seed)
    loaded = load_model(model)
    joint = "joint" in name
    # One-shot patterns as ours has them, so that the two differ in learning alone.
    start = learn_candidates(
        model, train, LearnRecipe(method="wanda", tile="weight", seed=seed)
    )
    keep = {n: torch.from_numpy(m.keep()) for n, m in start.cut(0.5).weights.items()}
    names = list(prunable(loaded.module))
    layers = replace_linears(loaded.module, names, _TILE, joint=joint, keep=keep)
    texts = windows([train], loaded.tokenizer, _STEPS, _WINDOW, seed)
    order = np.random.default_rng(seed).permutation(_STEPS)
    _learn(loaded, layers, torch.from_numpy(texts[order]), sparsity, joint)
    _cut(layers, sparsity)
    return loss_of(loaded, judged)


def _learn(
    loaded: LoadedModel,
    layers: list[PlainMasked],
    texts: torch.Tensor,
    sparsity: float,
    joint: bool,
) -> None:
    """The authors' objective and schedules (arXiv 2509.23410, table 6)."""
    module: Any = loaded.module
    module.requires_grad_(False)
    learned = [p for la in layers for p in (la.tiles, la.logits) if p is not None]
    for parameter in learned:
        parameter.requires_grad_(True)
    adam = torch.optim.Adam(learned, lr=1e-3, betas=(0.9, 0.95))
    rates = get_cosine_schedule_with_warmup(adam, _WARM_UP, len(texts))
    size = sum(layer.layer.weight.numel() for layer in layers)
    whole = sum(float(layer.layer.weight.norm()) for layer in layers)
    scale, dense_weight, norm_weight = (
        ((25, 350), 7.0, 10.0) if joint else ((100, 500), 3, 0.1)
    )
    for step, text in enumerate(texts):
        share = step / (len(texts) - 1)
        for layer in layers:
            layer.sample(
                tile=(_between(2.0, 0.05, share), _between(*scale, share)),
                pattern=(_between(4.0, 0.05, share), _between(100, 500, share)),
            )
        loss = module(input_ids=text[None], labels=text[None], use_cache=False).loss
        kept = sum(layer.made.sum() for layer in layers) / size
        norm = sum((layer.made * layer.layer.weight).norm() for layer in layers) / whole
        penalty = dense_weight * abs(kept - (1 - sparsity)) - norm_weight * (1 - share) * norm
        (loss + penalty).backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        adam.step()
        rates.step()
        adam.zero_grad()


def _between(first: float, last: float, share: float) -> float:
    return first + share * (last - first)


@torch.no_grad()
def _cut(layers: list[PlainMasked], sparsity: float) -> None:
    """Makes the tiles of the lowest logits sparse, as many as the budget asks for."""
    logits = torch.cat([layer.tiles.flatten() for layer in layers])
    # A tile's zeros: half of its weights; those at an edge are smaller.
    zeros = torch.cat([_areas(layer) for layer in layers]) / 2
    order = logits.argsort()
    target = sparsity * 2 * float(zeros.sum())
    dense = torch.empty_like(order, dtype=torch.bool)
    dense[order] = zeros[order].cumsum(0) - zeros[order] / 2 > target
    for layer in layers:
        mine, dense = dense[: layer.tiles.numel()], dense[layer.tiles.numel() :]
        layer.harden(mine.view_as(layer.tiles))


def _areas(layer: PlainMasked) -> torch.Tensor:
    numbers = torch.arange(layer.tiles.numel(), dtype=torch.float32).view_as(layer.tiles)
    return torch.bincount(layer.expanded(numbers).long().flatten()).float()


def _report(name: str, row: dict[str, Any]) -> None:
    path = RESULTS / "small_quality.json"
    rows = json.loads(path.read_text("utf-8"))["rows"] if path.exists() else {}
    rows[name] = row
    write_result("small_quality", {"steps": _STEPS, "window": _WINDOW, "rows": rows})
    figure = row["excess"] if "excess" in row else math.exp(row["loss"])
    print(f"{name:36} {figure:8.4f}  {row.get('seconds_a_seed', '')}", flush=True)


if __name__ == "__main__":
    main()
