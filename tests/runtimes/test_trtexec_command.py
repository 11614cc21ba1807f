"""The command fits the version, and what a version lacks is refused."""

from dataclasses import replace
from pathlib import Path

import pytest

from patch_compile.errors import RecipeError, RuntimeUnavailable
from patch_compile.recipe import BuildRecipe
from patch_compile.runtimes.trtexec_command import (
    ANY_VERSION,
    Exports,
    Trtexec,
    find_trtexec,
    probe,
    read_help,
    trtexec_command,
)
from tests.runtimes import published

TEN = read_help("/opt/trtexec", published.HELP_10)
ELEVEN = read_help("/opt/trtexec", published.HELP_11)
RECIPE = BuildRecipe(engine="trtexec")
SHAPES = {"ids": ((1, 1), (1, 512), (1, 2048)), "a:b": ((1,), (2,), (3,))}


def _command(
    tool: Trtexec = TEN, recipe: BuildRecipe = RECIPE, cache: Path | None = Path("t.cache")
) -> tuple[str, ...]:
    exports = Exports(Path("l.json"), Path("p.json"), Path("t.json"), cache)
    return trtexec_command(tool, Path("m.onnx"), Path("m.engine"), recipe, SHAPES, exports)


def test_help_tells_version_and_options() -> None:
    assert (TEN.version, ELEVEN.version) == ((10, 5, 0), (11, 1, 0))
    assert {"onnx", "fp16", "stronglyTyped", "exportLayerInfo"} <= TEN.options
    assert "fp16" not in ELEVEN.options


def test_command_of_ten_is_strongly_typed_and_steady() -> None:
    assert _command() == (
        "/opt/trtexec",
        "--onnx=m.onnx",
        "--sparsity=enable",
        "--minShapes=ids:1x1,'a:b':1",
        "--optShapes=ids:1x512,'a:b':2",
        "--maxShapes=ids:1x2048,'a:b':3",
        "--saveEngine=m.engine",
        "--stronglyTyped",
        "--timingCacheFile=t.cache",
        "--verbose",
        "--profilingVerbosity=detailed",
        "--exportLayerInfo=l.json",
        "--exportProfile=p.json",
        "--exportTimes=t.json",
        "--useCudaGraph",
        "--useSpinWait",
        "--noDataTransfers",
        "--separateProfileRun",
    )


def test_eleven_needs_no_flags_for_its_defaults() -> None:
    assert not {"--useCudaGraph", "--noDataTransfers"} & set(_command(ELEVEN))


def test_precision_takes_the_place_of_strong_types_where_it_exists() -> None:
    recipe = replace(RECIPE, precision=("int8", "fp16"))
    command = _command(TEN, recipe)
    assert [part for part in command if part in ("--fp16", "--int8")] == ["--fp16", "--int8"]
    assert "--stronglyTyped" not in command
    with pytest.raises(
        RecipeError, match=r"precision \| asks for int8; trtexec 11\.1\.0 .*--dtype"
    ):
        _command(ELEVEN, recipe)
    assert "--fp16" in _command(ANY_VERSION, recipe)


def test_every_option_of_the_recipe_reaches_the_command() -> None:
    recipe = replace(
        RECIPE,
        sparse=False,
        optimization_level=5,
        workspace=2048,
        hardware="ampere-plus",
        refit=True,
        flags=("--skipInference", "--device=1"),
    )
    command = _command(TEN, recipe, None)
    assert "--sparsity=disable" in command
    assert {
        "--builderOptimizationLevel=5",
        "--memPoolSize=workspace:2048M",
        "--hardwareCompatibilityLevel=ampere+",
        "--refit",
    } <= set(command)
    assert command[-2:] == ("--skipInference", "--device=1")
    assert not [part for part in command if part.startswith("--timingCacheFile")]


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (replace(RECIPE, sm=(86,)), r"sm \| is 86; trtexec builds for the GPU at hand"),
        (replace(RECIPE, strict_nans=True), r"strict-nans \| .*--engine tensorrt"),
        (replace(RECIPE, flags=("device=1",)), r"flags \| hold 'device=1'; expected"),
    ],
)
def test_what_trtexec_cannot_do_is_refused(recipe: BuildRecipe, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        _command(TEN, recipe)


def test_trtexec_is_looked_for_where_it_is_named_and_on_the_path(tmp_path: Path) -> None:
    assert find_trtexec({"TRTEXEC": "/x/trtexec", "PATH": str(tmp_path)}) == "/x/trtexec"
    tool = tmp_path / "trtexec"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    assert find_trtexec({"PATH": str(tmp_path)}) == str(tool)


def test_another_program_is_not_taken_for_trtexec(tmp_path: Path) -> None:
    tool = tmp_path / "trtexec"
    tool.write_text("#!/bin/sh\necho something else\n")
    tool.chmod(0o755)
    with pytest.raises(
        RuntimeUnavailable, match=r"as trtexec does: something else; .*TRTEXEC"
    ):
        probe(str(tool))
    with pytest.raises(RuntimeUnavailable, match=r"does not run: No such file"):
        probe(str(tmp_path / "none"))
