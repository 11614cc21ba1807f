"""A model that has learned to count, and text to learn from."""

from pathlib import Path

import pytest

from patch_compile.learn.model import LoadedModel, load_model
from tests.learn.training.taught import taught_model, write_counting


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return taught_model(tmp_path_factory.mktemp("taught") / "model")


@pytest.fixture
def model(checkpoint: Path) -> LoadedModel:
    return load_model(str(checkpoint))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_counting(tmp_path_factory.mktemp("text") / "text.txt", 700)
