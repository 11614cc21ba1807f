"""One tiny job, and the command line run in this process."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from patch_compile.cli.main import run
from patch_compile.io.masks_file import save_masks
from tests.support import Linear, linear_model, masks_of, random_mask, random_weight


@dataclass(frozen=True)
class Ran:
    """What a command line came to."""

    code: int
    out: str
    err: str


Cli = Callable[..., Ran]


@dataclass(frozen=True)
class Job:
    """A model of two weights (16, 32) with digests: `a` in bands of 8, `b` all 2:4."""

    folder: Path
    model: Path
    masks: Path
    out: Path

    def files(self) -> dict[Path, bytes]:
        return {p: p.read_bytes() for p in self.folder.rglob("*") if p.is_file()}


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    def cli_(*arguments: str | Path) -> Ran:
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return cli_


@pytest.fixture
def job(tmp_path: Path) -> Job:
    rng = np.random.default_rng(0)
    a, b = (random_weight(rng, 16, 32) for _ in "ab")
    model = tmp_path / "model.onnx"
    linear_model([Linear("a", a), Linear("b", b)], model, external=True)
    bands = random_mask(rng, "a.weight", a, "band:8", dense=np.array([[True], [False]]))
    whole = random_mask(rng, "b.weight", b, "weight", dense=np.array([[False]]))
    save_masks(masks_of(bands, whole), tmp_path / "masks.json")
    return Job(tmp_path, model, tmp_path / "masks.json", tmp_path / "out")
