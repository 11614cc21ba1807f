"""TensorRT's backend where TensorRT is missing: what can be told before a build."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from patch_compile.errors import RecipeError, RuntimeUnavailable
from patch_compile.recipe import BuildRecipe
from patch_compile.runtimes import tensorrt
from patch_compile.runtimes._native import Package, _job
from patch_compile.runtimes.engines import build_engine
from tests.support import Linear, linear_model, random_weight

RECIPE = BuildRecipe(engine="tensorrt")
PACKAGE = tensorrt._PACKAGE


@pytest.fixture
def model(tmp_path: Path, rng: np.random.Generator) -> Path:
    return linear_model([Linear("a", random_weight(rng, 16, 32))], tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (
            replace(RECIPE, sm=(86, 89)),
            r"sm \| is 86, 89; TensorRT builds for the GPU at hand",
        ),
        (replace(RECIPE, flags=("--x",)), r"flags \| are for trtexec, as in --x"),
    ],
)
def test_options_of_other_backends_are_refused(
    model: Path, recipe: BuildRecipe, words: str
) -> None:
    with pytest.raises(RecipeError, match=words):
        build_engine(model, model.with_suffix(".engine"), recipe)


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt") is not None, reason="tensorrt is installed"
)
def test_a_missing_package_names_its_extra(model: Path) -> None:
    with pytest.raises(RuntimeUnavailable, match=r"pip install 'tensorrt>=[0-9.]+' on a"):
        build_engine(model, model.with_suffix(".engine"), RECIPE)


def test_the_cache_lies_in_the_engines_folder(tmp_path: Path) -> None:
    stage = tmp_path / "out" / ".stage"
    for named, path in (
        ("timing.cache", str(tmp_path / "out" / "timing.cache")),
        (str(tmp_path / "shared.cache"), str(tmp_path / "shared.cache")),
        ("", ""),
    ):
        recipe = replace(RECIPE, timing_cache=named)
        job = _job(PACKAGE, tmp_path / "m.onnx", stage / "m.engine", None, recipe)
        assert job.timing_cache == path


def test_a_package_without_timings_keeps_none(tmp_path: Path) -> None:
    package = Package("p", "P", "pip install p", on_gpu=False)
    job = _job(package, tmp_path / "m.onnx", tmp_path / "s" / "m.engine", None, RECIPE)
    assert job.timing_cache == ""


def test_layers_are_asked_for_where_there_is_a_gpu(tmp_path: Path) -> None:
    layers = tmp_path / "m.engine.layers.json"
    job = _job(PACKAGE, tmp_path / "m.onnx", tmp_path / "s" / "m.engine", layers, RECIPE)
    assert job.layers == str(layers)


@pytest.fixture
def borrowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package `tensorrt` that is RTX's builder: one interface, and it builds on a CPU.

    It shows that the calls exist and fit together. What differs in TensorRT itself waits for
    a GPU, see tests/gpu.
    """
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt-rtx is not installed")
    package = tmp_path / "packages"
    package.mkdir()
    (package / "tensorrt.py").write_text(
        "from tensorrt_rtx import *\nfrom tensorrt_rtx import __version__\n"
    )
    monkeypatch.syspath_prepend(str(package))


@pytest.mark.usefixtures("borrowed")
def test_the_backend_builds_and_keeps_timings(model: Path) -> None:
    engine = model.parent / "out" / "m.engine"
    asked = replace(RECIPE, strict_nans=True, workspace=64)
    build_engine(model, engine, asked)
    result = build_engine(model, engine, asked)
    assert "started anew" not in result.log.read_text("utf-8")
    assert result.bytes == engine.stat().st_size
    assert (result.chosen, result.evidence.backend) == ("unknown", "tensorrt")
    assert (engine.parent / "timing.cache").stat().st_size > 0
    facts = json.loads((engine.parent / "m.engine.json").read_text("utf-8"))
    assert facts["backend"] == "tensorrt"
    assert {"SPARSE_WEIGHTS", "STRICT_NANS"} <= set(facts["flags"])


@pytest.mark.usefixtures("borrowed")
def test_timings_that_do_not_fit_are_started_anew(model: Path) -> None:
    (model.parent / "timing.cache").write_bytes(b"timings of another version")
    result = build_engine(model, model.with_suffix(".engine"), RECIPE)
    assert result.bytes > 0
    assert (model.parent / "timing.cache").read_bytes() != b"timings of another version"


@pytest.mark.usefixtures("borrowed")
def test_precision_flags_that_are_gone_are_refused(model: Path) -> None:
    asked = replace(RECIPE, precision=("int8",))
    with pytest.raises(RecipeError, match=r"precision \| asks for int8; TensorRT .*--dtype"):
        build_engine(model, model.with_suffix(".engine"), asked)


@pytest.mark.usefixtures("borrowed")
def test_hardware_compatibility_reaches_the_builder(model: Path) -> None:
    asked = replace(RECIPE, hardware="same-capability")
    result = build_engine(model, model.with_suffix(".engine"), asked)
    assert "setHardwareCompatibilityLevel" in result.log.read_text("utf-8")
