"""One tiny Llama, as a folder and as ONNX, with masks."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from patch_compile.io.masks_file import save_masks
from patch_compile.learn.export import export_onnx
from patch_compile.learn.model import load_model, save_checkpoint
from patch_compile.recipe import ExportRecipe, LearnRecipe
from tests.learn.tiny import one_shot, tiny_model, write_text

MAGNITUDE = LearnRecipe(method="magnitude", select="error", tile="band:16", sparsity=(0.3,))


@dataclass(frozen=True)
class Llama:
    """The same weights twice, masks of 30 % for them, and a text of 200 tokens."""

    folder: Path
    onnx: Path
    masks: Path
    text: Path


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Llama:
    home = tmp_path_factory.mktemp("llama")
    save_checkpoint(tiny_model("llama", layers=1), home / "hf")
    loaded = load_model(str(home / "hf"))
    save_masks(one_shot(loaded, None, MAGNITUDE), home / "masks.json")
    path = export_onnx(loaded, home / "onnx" / "model.onnx", ExportRecipe())
    text = write_text(home / "text.txt", 200)
    return Llama(home / "hf", path, home / "masks.json", text)
