"""Bugs, stops, help."""

import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, NoReturn

import pytest

from patch_compile.cli import verbs
from patch_compile.cli.main import main
from patch_compile.recipe import (
    BuildRecipe,
    CompileRecipe,
    ExportRecipe,
    LearnRecipe,
    VerifyRecipe,
)
from tests.cli.conftest import Cli, Job

RECIPES: dict[str, Sequence[type[Any]]] = {
    "": (CompileRecipe, BuildRecipe),
    "plan": (CompileRecipe,),
    "learn": (LearnRecipe,),
    "export": (ExportRecipe,),
    "verify": (VerifyRecipe,),
    "build": (BuildRecipe,),
    "inspect": (),
    "demo": (),
}


def test_a_bug_shows_its_traceback(
    cli: Cli, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> NoReturn:
        raise RuntimeError("a bug")

    monkeypatch.setattr(verbs, "compile_model", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        cli(*job.command())


def test_a_stop_by_the_user_says_so(
    cli: Cli, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(verbs, "compile_model", stopped)
    ran = cli(*job.command())
    assert (ran.code, ran.out) == (130, "")
    assert ran.err.startswith("patch-compile: stopped")


STOPPED_LOADING = """
import sys

class Stop:
    def find_spec(self, name, *_):
        if name == "patch_compile.cli.main":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Stop())
from patch_compile.__main__ import main
main()
"""


def test_a_stop_while_the_program_is_still_loading_says_so() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STOPPED_LOADING], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (130, "patch-compile: stopped\n")


def test_main_exits_with_the_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["inspect", "none.onnx"])
    assert caught.value.code == 1
    assert capsys.readouterr().err.startswith("patch-compile: model 'none.onnx' |")


def test_no_arguments_print_the_help(cli: Cli) -> None:
    bare, asked = cli(), cli("--help")
    assert bare == asked
    assert (bare.code, bare.err) == (0, "")
    assert bare.out.startswith(
        "Usage: patch-compile [OPTIONS] --tiles MASKS MODEL\n"
        "       patch-compile COMMAND [OPTIONS] ...\n"
    )
    for verb in RECIPES:
        assert re.search(rf"^│ {verb}\b", bare.out, re.MULTILINE)


def test_version_is_printed(cli: Cli) -> None:
    ran = cli("--version")
    assert ran.code == 0
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*\n", ran.out)


@pytest.mark.parametrize("verb", RECIPES)
def test_help_names_every_field_of_the_recipe(cli: Cli, verb: str) -> None:
    ran = cli(*filter(None, [verb]), "--help")
    assert (ran.code, ran.err) == (0, "")
    options = set(re.findall(r"--[a-z-]+", ran.out))
    for recipe in RECIPES[verb]:
        for field in fields(recipe):
            assert f"--{field.name.replace('_', '-')}" in options
    assert {"--config", "--save-config", "--log-level"} <= options
