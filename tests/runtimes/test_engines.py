"""Backends are found by name, and each has the one function they share."""

import importlib
import inspect
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from patch_compile.errors import RecipeError
from patch_compile.recipe import BuildRecipe
from patch_compile.runtimes.engines import BACKENDS, build_engine


def test_every_engine_of_the_recipe_has_a_backend() -> None:
    names = set(get_args(get_type_hints(BuildRecipe)["engine"]))
    assert names - {"none"} == set(BACKENDS)


@pytest.mark.parametrize("module", BACKENDS.values())
def test_backends_take_the_same_arguments(module: str) -> None:
    function = importlib.import_module(module).build_engine
    assert inspect.signature(function) == inspect.signature(build_engine)


def test_no_backend_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"engine \| is 'none'.*tensorrt_rtx"):
        build_engine(tmp_path / "m.onnx", tmp_path / "m.engine", BuildRecipe(engine="none"))
