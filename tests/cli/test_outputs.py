"""No output is an input, nor takes the place of a file of another kind."""

import json
import os
from pathlib import Path

import onnx
import pytest

from patch_compile.cli.outputs import PLAN, check_json, check_output
from patch_compile.errors import RecipeError
from tests.cli.conftest import Cli, Job, refused
from tests.support import said

OWN = "is read by this command, and would be overwritten; choose another name (-o)"
REPLACES = "would replace a file that is no "


@pytest.fixture
def compiled(cli: Cli, job: Job) -> Path:
    assert cli(job.model, "--tiles", job.masks, "-o", job.out).code == 0
    return job.out / "compiled.onnx"


# `@` stands before a file of the job. What is asked, and what is said of the output.
REFUSED: dict[str, tuple[str, str]] = {
    "a plan over its model": ("plan @model.onnx --tiles @masks.json -o @model.onnx", ".json"),
    "a plan over its masks": ("plan @model.onnx --tiles @masks.json -o @masks.json", OWN),
    "a plan over a report": (
        "plan @model.onnx --tiles @masks.json -o @out/report.json",
        f"{REPLACES}plan",
    ),
    "a comparison over a plan": (
        "plan @model.onnx --targets a100 -o @out/plan.json",
        f"{REPLACES}comparison of targets",
    ),
    "a comparison that is its picture": (
        "plan @model.onnx --targets a100 -o @p.png",
        "ends in no .json; choose a name that does",
    ),
    "a page over a model": ("report @out -o @model.onnx", "ends in no .html"),
    "a page over its report": ("report @out -o @out/report.json", "ends in no .html"),
    "times over a model": (
        "bench @model.onnx @out/compiled.onnx -o @model.onnx",
        "ends in no .json",
    ),
    "times over the report": ("bench @model.onnx @out/compiled.onnx -o @out/report.json", OWN),
    "times over masks": (
        "bench @model.onnx @out/compiled.onnx -o @masks.json",
        f"{REPLACES}result of `bench`",
    ),
    "a bundle over its model": ("build @model.onnx --bundle @model.onnx", "ends in no .tar"),
    "a table over masks": (
        "calibrate @model.onnx -o @masks.json",
        f"{REPLACES}table of a GPU",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_outputs_destroy_nothing(cli: Cli, job: Job, compiled: Path, case: str) -> None:
    line, told = REFUSED[case]
    words = [str(job.folder / w[1:]) if w[0] == "@" else w for w in line.split()]
    before = job.files()
    ran = cli(*words)
    refused(ran, f"patch-compile: output '{words[-1]}' | ")
    assert told in ran.err
    assert job.files() == before


def test_a_compile_keeps_masks_that_have_the_name_of_a_paper(cli: Cli, job: Job) -> None:
    masks = job.masks.rename(job.folder / "plan.json")
    before = job.files()
    ran = cli(job.model, "--tiles", masks, "-o", job.folder)
    assert (ran.code, ran.err) == (1, f"patch-compile: output '{masks}' | {OWN}\n")
    assert job.files() == before


def test_a_model_may_be_named_as_a_bundle_and_keeps_its_bytes(cli: Cli, job: Job) -> None:
    model = job.model.rename(job.folder / "model.tar")
    before = job.files()
    ran = cli("build", model, "--bundle", model)
    assert (ran.code, ran.err) == (1, f"patch-compile: output '{model}' | {OWN}\n")
    assert job.files() == before


def test_an_output_of_the_same_kind_is_replaced(cli: Cli, job: Job, compiled: Path) -> None:
    plan, compared = job.out / "plan.json", job.folder / "compared.json"
    for _ in range(2):
        assert cli("plan", job.model, "--tiles", job.masks, "-o", plan).code == 0
        assert cli("plan", job.model, "--targets", "a100-bf16", "-o", compared).code == 0
        assert cli("report", job.out).code == 0
    assert PLAN.holds(plan)


@pytest.mark.parametrize(
    "line",
    [
        "bench @model.onnx @out/compiled.onnx -o @folder.json",
        "bench @model.onnx @out/compiled.onnx --plot @folder.png",
        "plan @model.onnx --tiles @masks.json -o @folder.json",
        "plan @model.onnx --targets a100 -o @folder.json",
        "build @out/compiled.onnx --bundle @folder.tar",
        "report @out -o @folder.html",
        "calibrate @model.onnx -o @folder.json",
        "@model.onnx --tiles @masks.json -o @new --save-config @folder.json",
        "learn @model.onnx -o @folder.json",
    ],
)
def test_a_folder_is_told_before_the_work(
    cli: Cli, job: Job, compiled: Path, line: str
) -> None:
    words = [str(job.folder / w[1:]) if w[0] == "@" else w for w in line.split()]
    Path(words[-1]).mkdir()
    ran = cli(*words)
    # A command that was done would have printed its tables.
    assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1)
    assert ran.err.startswith("patch-compile: ")
    assert f" '{words[-1]}' | " in ran.err
    assert not (job.folder / "new").exists()


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("model.onnx", "is no .json file"),
        ("masks.json", "is a file of this command, and would be overwritten"),
        ("config.toml", "is no .json file"),
        ("given.json", "is a file of this command, and would be overwritten"),
        ("hf.json", "would replace a file that is no configuration"),
        ("model.onnx/new.json", "cannot be written"),
    ],
)
def test_a_saved_config_destroys_nothing_and_is_told_before_the_work(
    cli: Cli, job: Job, place: str, told: str
) -> None:
    for name, data in {"given.json": {"min_gain": 0.1}, "hf.json": {"vocab_size": 9}}.items():
        (job.folder / name).write_text(json.dumps(data))
    before = job.files()
    given = ("--config", job.folder / "given.json", "--save-config", job.folder / place)
    ran = cli(job.model, "--tiles", job.masks, "-o", job.out, *given)
    assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1)
    assert told in ran.err
    assert job.files() == before


def test_a_saved_config_replaces_an_earlier_one(cli: Cli, job: Job) -> None:
    saved = job.folder / "saved.json"
    for words in (("inspect", job.model), ("plan", job.model, "--tiles", job.masks)):
        assert cli(*words, "--save-config", saved).code == 0
    main = (job.model, "--tiles", job.masks, "-o", job.out, "--save-config", saved)
    assert [cli(*main).code, cli(*main).code] == [0, 0]


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_another_name_of_an_input_is_the_input(tmp_path: Path, link: object) -> None:
    model, other = tmp_path / "model.html", tmp_path / "page.html"
    model.write_text("mine")
    assert callable(link)
    link(model, other)
    with pytest.raises(RecipeError) as caught:
        check_output(other, [None, "infer", model], ".html")
    assert said(caught) == f"output '{other}' | {OWN}"


def test_weights_of_an_input_are_inputs(job: Job) -> None:
    model = onnx.load(job.model)
    path, weights = job.folder / "page.onnx", job.folder / "weights.html"
    onnx.save(model, path, save_as_external_data=True, location=weights.name, size_threshold=0)
    with pytest.raises(RecipeError, match="is read by this command"):
        check_output(weights, [path])
    check_output(weights, [job.model])


@pytest.mark.parametrize("text", ["", "[]", "{", '{"version": 2}', '{"weights": [], "b": 1}'])
def test_a_file_of_no_known_kind_is_not_replaced(tmp_path: Path, text: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(RecipeError, match="would replace a file that is no plan"):
        check_json(path, PLAN, [])
    path.write_text(json.dumps({"version": 1, "weights": []}))
    check_json(path, PLAN, [])
