"""Seconds and peak memory of one learning step, by method, beside plain implementations.

    python benchmarks/learn_step.py MODEL --text TEXT [--rounds 3] [--steps 3] [--bf16]

Every figure is of a process of its own: one window of 512 tokens a step, fp32, Adam, whole
masks of 64x64 tiles. `dense` trains the same weights without masks. `plain` is the paper's
equations in whole tensors under torch's autograd with gradient checkpointing, as one would
write them first; see plain_patch.py. Processes alternate, and the first step of each is
dropped. `--bf16` measures the methods in bf16 against the same dense step, on a processor that
has it.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from measuring import write_result
from plain_patch import PlainMasked, replace_linears
from torch import Tensor

from patch_compile import LearnRecipe, learn_candidates
from patch_compile.learn.linears import prunable
from patch_compile.learn.model import load_model
from patch_compile.learn.text import windows

_OURS = ("patch-tile", "patch-joint", "maskllm", "topk-ste", "leap")
_PLAIN = ("dense", "plain patch-tile", "plain patch-joint")
# Joint in the least memory, as the plain ones are.
_LEAN = "patch-joint recompute"
_FP32 = (*_PLAIN, *_OURS, _LEAN)
_BF16 = ("dense", *(f"{method} bf16" for method in (*_OURS, _LEAN)))
_TILE = 64


def _plain(model: str, text: Path, method: str, steps: int) -> list[float]:
    """Steps of the plain loop, or of dense training."""
    loaded = load_model(model)
    module: Any = loaded.module
    linears = prunable(module)
    module.requires_grad_(False)
    if method == "dense":
        masked: list[PlainMasked] = []
        learned = [linear.weight.requires_grad_(True) for linear in linears.values()]
    else:
        masked = replace_linears(module, list(linears), _TILE, joint="joint" in method)
        learned = [p for layer in masked for p in (layer.tiles, layer.logits)]
        learned = [p for p in learned if p is not None]
        module.train()
        module.gradient_checkpointing_enable({"use_reentrant": False})
    adam = torch.optim.Adam(learned, lr=1e-6, fused=True)
    ids = torch.from_numpy(windows([text], loaded.tokenizer, steps + 1, 512, 0))
    size = sum(linear.weight.numel() for linear in linears.values())

    def step(window: Tensor) -> None:
        # Outside of what is recomputed, as the authors do: noise must be the same again.
        kept: Any = 0.0
        for layer in masked:
            layer.sample(tile=(2.0, 100.0), pattern=(4.0, 100.0))
            kept = kept + layer.made.sum()
        loss = module(input_ids=window[None], labels=window[None], use_cache=False).loss
        norm = sum((la.made * la.layer.weight).square().sum() for la in masked)
        (loss + 7.0 * abs(kept / size - 0.75) - 1e-9 * norm).backward()
        adam.step()
        adam.zero_grad()

    return [_seconds(lambda window=window: step(window)) for window in ids]


def _seconds(step: Callable[[], None]) -> float:
    begun = time.perf_counter()
    step()
    return time.perf_counter() - begun


def _ours(model: str, text: Path, method: str, steps: int) -> list[float]:
    name, *options = method.split()
    recipe = LearnRecipe(
        method=name,  # type: ignore[arg-type] # one of _OURS
        tile=f"{_TILE}x{_TILE}",
        sparsity=(0.5 if name == "maskllm" else 0.25,),
        tile_start="random",
        prior="magnitude",
        select="error" if name in ("maskllm", "topk-ste") else None,
        precision="bf16" if "bf16" in options else "fp32",
        recompute="recompute" in options,
        steps=steps + 1,
        distill=False,
        holdout=0,
        checkpoint_every=1000,
    )
    with TemporaryDirectory() as folder:
        learn_candidates(model, text, recipe, run=folder)
        rows = (Path(folder) / "log.csv").read_text("utf-8").splitlines()
    column = rows[0].split(",").index("seconds")
    return [float(row.split(",")[column]) for row in rows[1:]]


def _child(options: argparse.Namespace) -> None:
    run = _plain if options.method in _PLAIN else _ours
    seconds = run(options.model, options.text, options.method, options.steps)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds[1:], "peak": peak}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--method", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.method:
        _child(options)
        return
    methods = _BF16 if options.bf16 else _FP32
    found: dict[str, list[dict[str, Any]]] = {method: [] for method in methods}
    for _ in range(options.rounds):
        for method in methods:
            command = [sys.executable, __file__, *sys.argv[1:], "--method", method]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[method].append(json.loads(done.stdout.splitlines()[-1]))
    _report(found, options)


def _report(found: dict[str, list[dict[str, Any]]], options: argparse.Namespace) -> None:
    rows: dict[str, Any] = {}
    for method, runs in found.items():
        seconds = median(second for run in runs for second in run["seconds"])
        rows[method] = {"seconds": seconds, "peak_bytes": max(run["peak"] for run in runs)}
    dense = rows["dense"]["seconds"]
    for method, row in rows.items():
        row["ratio_to_dense"] = row["seconds"] / dense
        print(
            f"{method:26} {row['seconds']:6.2f} s  {row['ratio_to_dense']:5.2f} x dense  "
            f"{row['peak_bytes'] / 1e9:5.2f} GB"
        )
    name = "learn_step_bf16" if options.bf16 else "learn_step"
    write_result(name, {"rounds": options.rounds, "rows": rows})


if __name__ == "__main__":
    main()
