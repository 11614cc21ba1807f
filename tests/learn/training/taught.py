"""A tiny model that has learned something, so that masks can cost it, and runs on it."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from patch_compile.learn.linears import find_linears
from patch_compile.learn.model import LoadedModel, save_checkpoint
from patch_compile.recipe import LearnRecipe
from patch_compile.tiles.masks import Masks
from tests.learn.tiny import tiny_model

WINDOW = 32


def counting_ids(rows: int, seed: int) -> Any:
    """Windows that count on by one of four strides: the next token takes two to know."""
    rng = np.random.default_rng(seed)
    start, stride = rng.integers(0, 128, (rows, 1)), rng.choice([1, 3, 7, 11], (rows, 1))
    return torch.from_numpy((start + stride * np.arange(WINDOW)) % 128)


def write_counting(path: Path, windows: int, seed: int = 1) -> Path:
    words = counting_ids(windows, seed).ravel().tolist()
    path.write_text(" ".join(f"w{i}" for i in words), "utf-8")
    return path


def loss_of(module: Any, ids: Any) -> Any:
    return module(input_ids=ids, labels=ids, use_cache=False).loss


def taught_model(folder: Path) -> Path:
    """Writes a checkpoint that counts."""
    model = tiny_model()
    adam = torch.optim.Adam(model.module.parameters(), lr=3e-3)
    for step in range(150):
        loss_of(model.module, counting_ids(32, seed=1000 + step)).backward()
        adam.step()
        adam.zero_grad()
    save_checkpoint(model, folder)
    return folder


@torch.no_grad()
def masked_loss(model: LoadedModel, masks: Masks, ids: Any = None) -> float:
    """The loss of hard masks; on windows that nobody learned from if none are given."""
    ids = counting_ids(64, seed=5) if ids is None else ids
    linears = find_linears(model.module)
    before = {name: linears[name].weight.clone() for name in masks.weights}
    for name, mask in masks.weights.items():
        linears[name].matrix(linears[name].weight).mul_(torch.from_numpy(mask.keep()))
    loss = float(loss_of(model.module, ids))
    for name, weight in before.items():
        linears[name].weight.copy_(weight)
    return loss


# Rates that move logits far enough in a few steps; the methods' own are for thousands.
METHODS: dict[str, dict[str, Any]] = {
    "topk-ste": {"lr": 0.05},
    "maskllm": {"lr": 0.02, "norm_weight": 0.1},
    "patch-tile": {"lr": 0.01},
    "patch-joint": {"lr": 0.02, "norm_weight": 0.1},
    "leap": {"lr": 0.02, "norm_weight": 0.1},
}


def run_recipe(method: str = "topk-ste", **options: Any) -> LearnRecipe:
    base: dict[str, Any] = {
        "method": method,
        "tile": "16x16",
        "sparsity": (0.4,),
        "samples": 16,
        "window": WINDOW,
        "steps": 6,
        "batch": 2,
        "holdout": 4,
        "checkpoint_every": 3,
        **METHODS[method],
    }
    return LearnRecipe(**{**base, **options})


def run_logits(folder: Path) -> dict[str, Any]:
    (arrays,) = folder.glob("step-*.safetensors")
    return load_file(arrays)


def log_rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
