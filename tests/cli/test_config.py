"""Configuration files: read, saved, refused."""

import json
import os

import pytest

from patch_compile.cli.main import app
from tests.cli.conftest import Cli, Job, refused


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
    ran = cli(*job.command("--config", config))
    assert ran.code == 1
    assert "min_gian" in ran.err
    assert "config.toml" in ran.err
    assert not job.out.exists()


def test_a_fraction_in_a_config_file_is_refused_by_its_file(cli: Cli, job: Job) -> None:
    config = job.folder / "config.toml"
    config.write_text("sm = [80, 8.6]", "utf-8")
    ran = cli(*job.command("--config", config))
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
    for given in (job.command(), ("inspect", job.model)):
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
    first = cli(*job.command(*options, "--save-config", saved))
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
