"""A folder with a valid file of every kind that patch-compile reads."""

import io
import json
import os
import shutil
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patch_compile.cli.main import run
from patch_compile.io.masks_file import save_masks
from patch_compile.piece_sites import find_pieces
from patch_compile.recipe import BuildRecipe
from patch_compile.runtimes.engine_file import sha256_of, write_facts
from patch_compile.runtimes.evidence import Evidence
from patch_compile.tiles.masks import Masks
from patch_compile.tiles.weight_mask import WeightMask
from tests.runtimes import published
from tests.support import Linear, band_mask, linear_model, masks_of, random_weight

__all__ = ["SHAPES", "make_home", "quiet_run"]

# (N, K) of the linears of the model.
SHAPES = {"a": (16, 32), "b": (24, 32)}


def quiet_run(*arguments: str | Path) -> tuple[int, str, str]:
    """Runs a command line in this process: exit code, stdout, stderr."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = run([os.fspath(argument) for argument in arguments])
    return code, out.getvalue(), err.getvalue()


def make_home(folder: Path) -> Path:
    """Fills `folder` and returns it; equal in every run."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: random_weight(rng, *shape) for name, shape in SHAPES.items()}
    masks = masks_of(*(_scored(rng, name, weight) for name, weight in weights.items()))
    linears = [Linear(name, weight) for name, weight in weights.items()]
    linear_model(linears, folder / "model.onnx")
    linear_model(linears, folder / "outside.onnx", external=True)
    save_masks(masks, folder / "masks.json")
    _write_archives(masks, folder)
    code, _, told = quiet_run(
        folder / "model.onnx", "--tiles", folder / "masks.json", "-o", folder / "out"
    )
    assert code == 0, told
    _write_results(folder / "out" / "compiled.onnx", folder / "results")
    _write_engine(folder)
    _write_texts(folder)
    shutil.copy(
        str(files("patch_compile.targets") / "tables" / "a100-fp16.json"),
        folder / "table.json",
    )
    return folder


def _scored(rng: np.random.Generator, name: str, weight: NDArray[Any]) -> WeightMask:
    mask = band_mask(rng, f"{name}.weight", weight)
    scores = rng.random(mask.grid.tiles).astype(np.float32)
    return replace(mask, scores=scores, ties=np.zeros(mask.grid.tiles, np.int32))


def _write_archives(masks: Masks, folder: Path) -> None:
    """As PATCH and MaskLLM release them."""
    keeps = {name: mask.keep() for name, mask in masks.weights.items()}
    packed = {name: np.packbits(keep.ravel()) for name, keep in keeps.items()}
    shapes = {f"{name}.__shape__": np.array(keep.shape) for name, keep in keeps.items()}
    meta = {"__meta__": np.array(json.dumps({"tile": "band:8"}))}
    _savez(folder / "mask.npz", {**packed, **shapes, **meta})
    _savez(
        folder / "mask_compressed.npz",
        {f"{name.removesuffix('.weight')}.mask": bits for name, bits in packed.items()},
    )


def _savez(path: Path, arrays: dict[str, np.ndarray]) -> None:
    # Names with a dot or `file` are no keyword of ours.
    np.savez_compressed(path, allow_pickle=False, **arrays)


def _write_results(compiled: Path, folder: Path) -> None:
    """What the bundle's script leaves, in the published forms."""
    sites, nodes = find_pieces(compiled)
    pieces = [vars(site) for site in sites]
    entry = {
        "name": "compiled",
        "sha256": sha256_of(compiled),
        "nodes": nodes,
        "pieces": pieces,
        "symbols": {"batch": 1, "sequence": 16},
    }
    layers = [
        {"Name": s.node, "LayerType": "gemm", "TacticName": "sm80_sparse_gemm", "Metadata": ""}
        for s in sites
    ]
    names = [site.node for site in sites]
    log = published.HELP_10 + published.ISSUE_3747 + published.ISSUE_4177
    log += published.MEMORY_10 + published.CONTEXT_10
    log += published.VERBOSE_NEW.format(a=names[0], b=names[-1], c="x")
    recipe = {"sparse": True, "batch": [1, 1, 1], "sequence": [1, 16, 16]}
    files = {
        "manifest.json": json.dumps({"recipe": recipe, "models": [entry]}),
        "gpu.csv": "NVIDIA RTX A6000, 8.6, 550.54, 49140\n",
        "trtexec.txt": "&&&& RUNNING TensorRT.trtexec [TensorRT v100500]\n",
        "compiled/build.log": log,
        "compiled/layers.json": json.dumps({"Layers": layers}),
        "compiled/profile.json": published.PROFILE,
        "compiled/times.0.json": published.TIMES,
        "compiled/times.1.json": published.TIMES,
        "compiled/status": "0\n",
        "compiled/bytes": "1234\n",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, "utf-8")


def _write_engine(folder: Path) -> None:
    engine = folder / "m.engine"
    engine.write_bytes(b"engine")
    recipe = BuildRecipe(engine="tensorrt")
    evidence = Evidence("tensorrt", version="10.9.0", device="NVIDIA A100", sm=80)
    write_facts(engine, folder / "model.onnx", recipe, evidence, sm=(80,), profiles={})


def _write_texts(folder: Path) -> None:
    words = [f"w{i}" for i in np.random.default_rng(1).integers(0, 64, 400)]
    question = {"query": "w1 w2", "choices": ["w3", "w4"], "gold": 1}
    options = {"tile": "band:8", "lowering": "columns", "ignore": ["x*", "re:y"]}
    texts = {
        "text.txt": " ".join(words),
        "text.jsonl": json.dumps({"text": " ".join(words)}) + "\n",
        "tasks/piqa.jsonl": f"{json.dumps(question)}\n" * 3,
        "config.json": json.dumps({**options, "plan": {"tile": "8x8"}}),
        "config.yaml": "tile: band:8\nlowering: columns\nignore: [x*, y]\n",
        "config.toml": 'tile = "band:8"\nlowering = "columns"\nignore = ["x*"]\n',
    }
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, "utf-8")
