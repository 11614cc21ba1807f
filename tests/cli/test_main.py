"""Errors in one line, help, configuration files."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from patch_compile.cli import verbs
from patch_compile.cli.main import app, main
from patch_compile.recipe import (
    BuildRecipe,
    CompileRecipe,
    ExportRecipe,
    LearnRecipe,
    VerifyRecipe,
)
from tests.cli.conftest import Cli, Job, refused
from tests.support import Linear, linear_model, random_weight

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

Arguments = Callable[[Job], Sequence[str | Path]]


def _main(job: Job, *more: str | Path) -> Sequence[str | Path]:
    return (job.model, "--tiles", job.masks, "-o", job.out, *more)


def _pickled(job: Job) -> Sequence[str | Path]:
    path = job.folder / "mask.npz"
    array = np.array([{"a": 1}], dtype=object)
    np.savez(path, allow_pickle=True, **{"a.weight": array, "__meta__": array})
    return (job.model, "--tiles", path, "-o", job.out)


def _text(job: Job) -> Sequence[str | Path]:
    path = job.folder / "text.onnx"
    path.write_text("not a model", "utf-8")
    return (path, *_main(job)[1:])


ERRORS: dict[str, tuple[Arguments, str]] = {
    "missing model": (lambda job: ("none.onnx", *_main(job)[1:]), "'none.onnx' | is not"),
    "a verb that is none": (lambda job: ("frobnicate", *_main(job)[1:]), "'frobnicate' |"),
    "text for a model": (_text, "text.onnx' | is not a readable ONNX"),
    "masks for a model": (lambda job: (job.masks, *_main(job)[1:]), "masks.json' | is not"),
    "missing masks": (
        lambda job: (job.model, "--tiles", job.folder / "none.json", "-o", job.out),
        "none.json' | is not a file",
    ),
    "masks not given": (
        lambda job: (job.model, "-o", job.out),
        "tiles | is missing; give --tiles, or see --help",
    ),
    "an architecture and no engine": (
        lambda job: _main(job, "--sm", "86,89"),
        "sm | is given, and without --engine nothing reads it; give --engine as well",
    ),
    "flags and no engine": (
        lambda job: _main(job, "--", "--device=1"),
        "flags | is given, and without --engine nothing reads it",
    ),
    "tokens and no target": (
        lambda job: _main(job, "--tokens", "1"),
        "tokens | is given, and without --target nothing reads it",
    ),
    "tokens and no target, planned": (
        lambda job: ("plan", job.model, "--tiles", job.masks, "--tokens", "1"),
        "tokens | is given, and without --target nothing reads it",
    ),
    "a calibration and nothing to quantise": (
        lambda job: _main(job, "--quantize-error", "0.3"),
        "quantize-error | is given, and without --quantize nothing reads it",
    ),
    "an empty list": (lambda job: _main(job, "--sm", ""), "sm | is empty; expected a value"),
    "an empty list by =": (
        lambda job: _main(job, "--ignore="),
        "ignore | is empty; expected a value",
    ),
    "rounds of what was measured elsewhere": (
        lambda job: ("bench", "--import", job.folder, "--rounds", "99"),
        "rounds | is given with --import, which times nothing; leave one of them out",
    ),
    "a limit without tasks": (
        lambda job: ("eval", job.folder, "--data", "t.txt", "--limit", "3"),
        "limit | is given, and without --tasks nothing reads it",
    ),
    "a folder of tasks without tasks": (
        lambda job: ("eval", job.folder, "--data", "t.txt", "--task-dir", job.folder),
        "task-dir | is given, and no tasks are; give --tasks as well",
    ),
    "a folder that is a file": (
        lambda job: (*_main(job)[:-1], job.model),
        "names a file, and -o is a folder here; give one",
    ),
    "a folder called as a model": (
        lambda job: (*_main(job)[:-1], job.out / "compiled.onnx"),
        "names a file, and -o is a folder here; give one",
    ),
    "masks that are a model": (
        lambda job: (job.model, "--tiles", job.model, "-o", job.out),
        "end in '.onnx'; expected .json or .npz",
    ),
    "pickled masks": (_pickled, "mask.npz"),
    "bad geometry": (
        lambda job: (job.model, "--tiles", "infer", "--tile", "7x7", "-o", job.out),
        "is 7; expected a multiple of 4",
    ),
    "bad pattern": (lambda job: _main(job, "--ignore", "re:["), "'re:['"),
    "nothing left": (lambda job: _main(job, "--ignore", "a.*,b.*"), "leave none of 2 masks"),
    "gain of 2": (lambda job: _main(job, "--min-gain", "2"), "min-gain | is 2.0"),
    "gain no number": (lambda job: _main(job, "--min-gain", "nan"), "min-gain | is nan"),
    "gain in percent": (
        lambda job: _main(job, "--min-gain", "5%"),
        "min-gain | is '5%'; expected a number, as in 0.05",
    ),
    "a compute capability": (
        lambda job: _main(job, "--sm", "8.6"),
        "sm | is '8.6'; expected a whole number, as in 86 for compute capability 8.6",
    ),
    "a fraction in a list": (lambda job: _main(job, "--sm", "80,86.9"), "sm | is '86.9'"),
    "a fraction in a range": (
        lambda job: _main(job, "--batch", "1,2.5,4"),
        "batch | is '2.5'; expected a whole number, as in 1,1,1",
    ),
    "an architecture twice": (
        lambda job: _main(job, "--sm", "86,89,86"),
        "sm | are (86, 89, 86); expected each once",
    ),
    "a fraction of steps": (
        lambda job: ("learn", job.folder, "--steps", "2.5"),
        "steps | is '2.5'; expected a whole number, as in ",
    ),
    "a number of no default": (
        lambda job: ("cut", job.masks, "--sparsity", "half"),
        "sparsity | is 'half'; expected a number, as in 0.25",
    ),
    "unknown option": (lambda job: _main(job, "--frobnicate"), "--frobnicate"),
    "unknown choice": (lambda job: _main(job, "--lowering", "most"), '"most"'),
    "a word too many": (lambda job: _main(job, "more"), "'more' | is a word too many"),
    "falling range": (lambda job: _main(job, "--batch", "4,2,1"), "batch | is (4, 2, 1)"),
    "short range": (
        lambda job: _main(job, "--batch", "4,2"),
        "batch | is '4,2'; expected 3 numbers: least, best and most, as in --batch 1,4,8",
    ),
    "long range": (
        lambda job: ("build", job.model, "--sequence=1,2,3,4"),
        "sequence | is '1,2,3,4'; expected 3 numbers",
    ),
    "one number for a range": (
        lambda job: _main(job, "--batch", "4"),
        "batch | is '4'; expected 3 numbers: least, best and most",
    ),
    "nothing for a range": (
        lambda job: ("build", job.model, "--sequence"),
        "sequence | is ''; expected 3 numbers",
    ),
    "flags of a verb that has none": (
        lambda job: ("inspect", job.model, "--", "--foo"),
        "inspect | has '--foo' behind `--`, where flags of trtexec stand",
    ),
    "log level": (lambda job: _main(job, "--log-level", "loud"), '"loud"'),
    "output under a file": (
        lambda job: (job.model, "--tiles", job.masks, "-o", job.masks / "out"),
        "masks.json/out' | cannot be written",
    ),
    "missing config": (lambda job: _main(job, "--config", "none.toml"), "'none.toml' |"),
    "a dry run without text": (
        lambda job: _main(job, "--dry-run", "--quantize", "int8"),
        "quantize | is int8, which needs text to calibrate on; give it by --data",
    ),
    "targets and a target": (
        lambda job: ("plan", job.model, "--targets", "a100", "--target", "a100-bf16"),
        "target | is 'a100-bf16', given with --targets, which compares without it",
    ),
    "targets and a budget": (
        lambda job: ("plan", job.model, "--targets", "a100", "--sparsity", "0.2"),
        "sparsity | is 0.2, given with --targets",
    ),
    "targets and shares": (
        lambda job: ("plan", job.model, "--targets", "a100", "--tokens", "16:0.9,256"),
        "tokens | has '16:0.9', and --targets predicts each number of tokens by itself",
    ),
    "a bundle and a folder": (
        lambda job: ("build", job.model, "--bundle", job.folder / "out.tar", "-o", job.out),
        "output | belongs to engines, and with --bundle none is built here",
    ),
    "a bundle as json": (
        lambda job: ("build", job.model, "--bundle", job.folder / "out.tar", "--json"),
        "json | belongs to engines, and with --bundle none is built here",
    ),
    "saving a config as toml": (
        lambda job: _main(job, "--save-config", job.folder / "s.toml"),
        "s.toml' | is no .json file, and JSON is what is written; name it 's.json'",
    ),
    "sparsity over half": (
        lambda job: ("learn", job.folder, "--sparsity", "0.9"),
        "sparsity | is 0.9; expected a number from 0.0 to 0.5",
    ),
    "window over the text": (
        lambda job: ("verify", job.model, job.model, "--tiles", "infer", "--tokens", "100"),
        "tokens | is 100",
    ),
    "tolerance no number": (
        lambda job: ("verify", job.model, job.model, "--tiles", job.masks, "--rtol", "nan"),
        "rtol | is nan; expected a number from 0.0 to",
    ),
    "tolerance below nothing": (
        lambda job: ("verify", job.model, job.model, "--tiles", job.masks, "--atol", "-1"),
        "atol | is -1.0; expected a number from 0.0 to",
    ),
    "no report beside": (
        lambda job: ("verify", job.model, job.model, "--tiles", job.masks),
        "has no readable report.json beside it",
    ),
    "inspecting no model": (lambda job: ("inspect", _text(job)[0]), "not a readable ONNX"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_an_error_is_one_line_and_writes_nothing(cli: Cli, job: Job, case: str) -> None:
    arguments, complaint = ERRORS[case]
    given = arguments(job)
    before = job.files()
    ran = cli(*given)
    assert ran.code == 1
    assert ran.out == ""
    assert ran.err.startswith("patch-compile: ")
    assert ran.err.count("\n") == 1
    assert ran.err.endswith("\n")
    assert complaint in ran.err
    assert "Traceback" not in ran.err
    assert job.files() == before
    assert not job.out.exists()


def test_a_long_error_is_not_wrapped(cli: Cli, job: Job) -> None:
    path = job.folder / ("long" * 60)
    ran = cli(path, "--tiles", job.masks)
    assert ran.err.count("\n") == 1
    assert str(path) in ran.err


def test_a_weight_of_another_checkpoint_is_refused_unless_told(cli: Cli, job: Job) -> None:
    rng = np.random.default_rng(1)
    others = [Linear(name, random_weight(rng, 16, 32)) for name in "ab"]
    linear_model(others, job.model, external=True)
    before = job.files()
    ran = cli(*_main(job))
    assert ran.code == 1
    assert "weight 'a.weight' | differs" in ran.err
    assert "--no-check-digests" in ran.err
    assert ran.err.count("\n") == 1
    assert job.files() == before
    assert cli(*_main(job, "--no-check-digests")).code == 0
    assert (job.out / "compiled.onnx").exists()


def test_a_failed_run_leaves_the_last_result_alone(cli: Cli, job: Job) -> None:
    assert cli(*_main(job)).code == 0
    before = job.files()
    assert cli(*_main(job, "--ignore", "re:[")).code == 1
    assert job.files() == before


def test_a_bug_shows_its_traceback(
    cli: Cli, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> NoReturn:
        raise RuntimeError("a bug")

    monkeypatch.setattr(verbs, "compile_model", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        cli(*_main(job))


def test_a_stop_by_the_user_says_so(
    cli: Cli, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(verbs, "compile_model", stopped)
    ran = cli(*_main(job))
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


def _config(job: Job, ending: str) -> str:
    """Options of the main job, and of `build` and `inspect`, in one of the formats."""
    masks, out = str(job.masks), str(job.out)
    if ending == "json":
        top = {"tiles": masks, "output": out, "min-gain": 0.4, "json": True}
        return json.dumps({**top, "inspect": {"tile": "band:4", "json": True}})
    if ending == "toml":
        return (
            f"tiles = '{masks}'\noutput = '{out}'\nmin_gain = 0.4\njson = true\n"
            "[inspect]\ntile = 'band:4'\njson = true\n"
        )
    return (
        f"tiles: '{masks}'\noutput: '{out}'\nmin-gain: 0.4\njson: true\n"
        "inspect:\n  tile: band:4\n  json: true\n"
    )


@pytest.mark.parametrize("ending", ["toml", "yaml", "json"])
def test_a_config_file_gives_the_options(cli: Cli, job: Job, ending: str) -> None:
    config = job.folder / f"config.{ending}"
    config.write_text(_config(job, ending), "utf-8")
    ran = cli(job.model, "--config", config)
    assert ran.code == 0
    assert json.loads(ran.out)["recipe"]["min_gain"] == 0.4
    assert (job.out / "compiled.onnx").exists()
    inspected = json.loads(cli("inspect", job.model, "--config", config).out)
    assert len(inspected["weights"][0]["tile_map"]) == 4


def test_the_command_line_wins_over_the_config_file(cli: Cli, job: Job) -> None:
    config = job.folder / "config.toml"
    config.write_text(_config(job, "toml"), "utf-8")
    ran = cli(job.model, "--config", config, "--min-gain", "0.1", "--dry-run")
    assert json.loads(ran.out)["recipe"]["min_gain"] == 0.1


def test_a_config_file_is_forgotten_after_its_run(cli: Cli, job: Job) -> None:
    config = job.folder / "config.toml"
    config.write_text(_config(job, "toml"), "utf-8")
    cli(job.model, "--config", config)
    assert cli(job.model).code == 1


def test_an_unknown_key_of_a_config_file_is_refused(cli: Cli, job: Job) -> None:
    config = job.folder / "config.toml"
    config.write_text("min_gian = 0.1", "utf-8")
    ran = cli(*_main(job, "--config", config))
    assert ran.code == 1
    assert "min_gian" in ran.err
    assert "config.toml" in ran.err
    assert not job.out.exists()


def test_a_fraction_in_a_config_file_is_refused_by_its_file(cli: Cli, job: Job) -> None:
    config = job.folder / "config.toml"
    config.write_text("sm = [80, 8.6]", "utf-8")
    ran = cli(*_main(job, "--config", config))
    assert ran.code == 1
    assert f"sm | is '8.6' in '{config}'; expected a whole number" in ran.err


@pytest.mark.parametrize("level", ["3", "3.0", "0x3", "+3"])
def test_a_whole_number_may_be_written_in_any_way(level: str) -> None:
    words = ["build", "m.onnx", "--optimization-level", level]
    _, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
    assert bound.arguments["recipe"].optimization_level == 3


def test_a_table_of_no_verb_is_refused_whatever_runs(cli: Cli, job: Job) -> None:
    config = job.folder / "config.toml"
    config.write_text("[inspct]\njson = true", "utf-8")
    for given in (_main(job), ("inspect", job.model)):
        ran = cli(*given, "--config", config)
        refused(ran, "has a table 'inspct', which is no verb; expected tables of bench, ")
    assert not job.out.exists()


def test_a_saved_config_runs_the_same(cli: Cli, job: Job) -> None:
    saved = job.folder / "saved" / "config.json"
    options = [
        "--ignore",
        "b*,re:x{1,2}",
        "--min-gain",
        "0.2",
        "--lowering",
        "whole",
        "--json",
    ]
    first = cli(*_main(job, *options, "--save-config", saved))
    before = {path: path.read_bytes() for path in job.out.iterdir()}
    # By name: a second run replaces the files.
    for path in before:
        os.unlink(path)
    second = cli(job.model, "--config", saved)
    assert (second.code, second.out) == (0, first.out)
    assert {path: path.read_bytes() for path in job.out.iterdir()} == before
    assert json.loads(second.out)["recipe"]["ignore"] == ["b*", "re:x{1,2}"]
    assert json.loads(saved.read_text("utf-8"))["lowering"] == "whole"


def test_a_saved_config_of_a_verb_lies_in_its_table(cli: Cli, job: Job) -> None:
    saved = job.folder / "config.json"
    first = cli("inspect", job.model, "--tile", "band:4", "--json", "--save-config", saved)
    assert json.loads(saved.read_text("utf-8")) == {
        "inspect": {"tile": "band:4", "maps": False, "json": True}
    }
    assert cli("inspect", job.model, "--config", saved) == first


def test_the_config_of_a_failed_run_is_not_saved(cli: Cli, job: Job) -> None:
    saved = job.folder / "config.json"
    assert cli("none.onnx", "--tiles", job.masks, "--save-config", saved).code == 1
    assert not saved.exists()
