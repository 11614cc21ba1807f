"""What `learn` reads: a checkpoint of Hugging Face, GGUF, and what a run left.

Apart from `home`, for it loads torch.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from patch_compile.learn.model import load_model, save_checkpoint
from patch_compile.learn.training.gate import Gate, Moment, parameters_of
from patch_compile.learn.training.patterns import TopTwoPattern
from patch_compile.learn.training.run_folder import RunFolder
from patch_compile.learn.training.schedule import Annealed
from patch_compile.runtimes.perplexity import open_tokenizer
from patch_compile.tiles.geometry import Geometry
from tests.learn.tiny import tiny_model
from tests.learn.tiny_gguf import write_gguf

__all__ = ["GGUF", "HF", "STEP", "encode", "load", "make_learned", "resume"]

HF, GGUF = "hf", "tiny.gguf"

_IDENTITY = {"recipe": {"steps": 3, "tie": ["mlp"]}, "model": {"w": "abc"}}
_DONE = 3
STEP = f"step-{_DONE:07}.safetensors"


def _gates() -> dict[str, Gate]:
    seeded = torch.Generator().manual_seed(0)
    pattern, annealed = TopTwoPattern(), Annealed(1.0, 1.0)
    stored = pattern.start(torch.rand(8, 16, generator=seeded), seeded)
    grid = Geometry.parse("4x8").grid((8, 16))
    tiles = torch.randn(grid.tiles, generator=seeded)
    moment = Moment(annealed, annealed)
    return {"w": Gate("w", grid, pattern, moment, tiles=tiles, stored=stored)}


def make_learned(folder: Path) -> None:
    """Adds `run/`, `tokenizer.json`, and a llama of one layer, `hf/` and as GGUF."""
    save_checkpoint(tiny_model(layers=1), folder / HF)
    write_gguf(folder / GGUF, np.random.default_rng(0))
    gates = _gates()
    adam = torch.optim.Adam(parameters_of(gates).values())
    for parameter in parameters_of(gates).values():
        parameter.grad = torch.ones_like(parameter)
    adam.step()
    run = RunFolder(folder / "run", _IDENTITY)
    with run.owned():
        run.log({"step": 1, "loss": 2.0})
        run.save(_DONE, gates, adam)
    words = {f"w{i}": i for i in range(64)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))


def load(place: str) -> Callable[[Path], object]:
    """Loads a model of the folder, as `learn` and `export` do."""
    return lambda folder: load_model(str(folder / place))


def resume(folder: Path) -> object:
    """Goes on from the checkpoint, as `learn --resume` does."""
    gates = _gates()
    state = RunFolder(folder / "run", _IDENTITY).begin(resume=True)
    if state is not None:
        state.load(gates, torch.optim.Adam(parameters_of(gates).values()))
    return state


def encode(folder: Path) -> object:
    """Tokenizes a text."""
    return open_tokenizer(folder / "tokenizer.json")("w1 w2 x", True)
