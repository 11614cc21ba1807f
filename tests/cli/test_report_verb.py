"""`report`, and the verbs that add to a report."""

import json
import shlex
import shutil
from html import unescape

import pytest

from tests.cli.conftest import Cli, Job, refused


def test_the_page_is_drawn_again(cli: Cli, job: Job) -> None:
    assert cli(job.model, "--tiles", job.masks, "-o", job.out).code == 0
    page = job.out / "report.html"
    drawn = page.read_bytes()
    page.unlink()
    ran = cli("report", job.out)
    assert (ran.code, ran.out, ran.err) == (0, "", f"wrote {page}\n")
    assert page.read_bytes() == drawn
    other = job.folder / "other.html"
    assert cli("report", job.out / "report.json", "-o", other).code == 0
    assert other.read_bytes() == drawn


def test_a_folder_without_a_report_is_one_line(cli: Cli, job: Job) -> None:
    ran = cli("report", job.folder)
    refused(ran, f"patch-compile: report '{job.folder / 'report.json'}' | ")


def test_verify_adds_what_it_found(cli: Cli, job: Job) -> None:
    assert cli(job.model, "--tiles", job.masks, "-o", job.out).code == 0
    assert "nobody has verified this model yet" in (job.out / "report.html").read_text("utf-8")
    verify = ("verify", job.model, job.out / "compiled.onnx", "--tiles", job.masks)
    ran = cli(*verify, "--atol", "0.25", "--json")
    assert ran.code == 0
    found = json.loads((job.out / "report.json").read_text("utf-8"))["verification"]
    assert {key: found[key] for key in json.loads(ran.out)} == json.loads(ran.out)
    assert (found["data"], found["recipe"]["atol"]) == (None, 0.25)
    page = (job.out / "report.html").read_text("utf-8")
    assert "within tolerance" in page
    assert "--tiles masks.json --atol 0.25" in page
    before = job.files()
    assert cli(*verify, "--atol", "0.25").code == 0
    assert job.files() == before


def test_a_verification_that_fails_is_on_the_page(cli: Cli, job: Job) -> None:
    assert cli(job.model, "--tiles", job.masks, "-o", job.out).code == 0
    verify = ("verify", job.model, job.out / "compiled.onnx", "--tiles", job.masks)
    assert cli(*verify, "--atol", "0", "--rtol", "0").code in (0, 2)
    with (job.out / "compiled.onnx.data").open("r+b") as weights:
        weights.write(b"\x00\x00\x80\x43")
    assert cli(*verify).code == 2
    assert "OVER TOLERANCE" in (job.out / "report.html").read_text("utf-8")


def test_the_commands_of_the_page_make_the_same_files(
    cli: Cli, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--min-gain", "0.3", "--ignore", "a.*,nothing here", "--restore")
    assert cli(job.model, "--tiles", job.masks, "-o", job.out, *options).code == 0
    before = job.files()
    page = unescape((job.out / "report.html").read_text("utf-8"))
    line = next(text for text in page.split("\n") if "patch-compile model.onnx" in text)
    command = line[line.index("patch-compile model.onnx") :]
    assert command == (
        "patch-compile model.onnx --tiles masks.json -o out --restore --min-gain 0.3 "
        "--ignore 'a.*' --ignore 'nothing here'"
    )
    shutil.rmtree(job.out)
    monkeypatch.chdir(job.folder)
    assert cli(*shlex.split(command)[1:]).code == 0
    assert job.files() == before
