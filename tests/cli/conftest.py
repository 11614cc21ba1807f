"""One tiny job, and the command line run in this process."""

from collections.abc import Callable, Sequence
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

# A short run of a method that learns.
LEARN = ["--method", "topk-ste", "--tile", "band:8", "--samples", "2", "--window", "16"]
LEARN += ["--holdout", "2"]


def refused(ran: Ran, message: str) -> None:
    """Checks that a command line came to one line that says `message`."""
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith("patch-compile: "), ran.err
    assert ran.err.count("\n") == 1
    assert message in ran.err


@dataclass(frozen=True)
class Job:
    """A model of two weights (16, 32) with digests: `a` in bands of 8, `b` all 2:4."""

    folder: Path
    model: Path
    masks: Path
    out: Path

    def command(self, *more: str | Path) -> Sequence[str | Path]:
        """Arguments of the main job."""
        return (self.model, "--tiles", self.masks, "-o", self.out, *more)

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


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Hugging Face model, not to be written to."""
    # The base tests share this file and have no torch.
    from patch_compile.learn.model import save_checkpoint
    from tests.learn.tiny import tiny_model

    folder = tmp_path_factory.mktemp("llama")
    save_checkpoint(tiny_model("llama", layers=1), folder)
    return folder


@pytest.fixture
def text(tmp_path: Path) -> Path:
    from tests.learn.tiny import write_text

    return write_text(tmp_path / "text.txt", 900)
