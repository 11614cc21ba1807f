"""A tiny model that has learned something, so that masks can cost it."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from patch_compile.learn.linears import find_linears
from patch_compile.learn.model import LoadedModel, save_checkpoint
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
