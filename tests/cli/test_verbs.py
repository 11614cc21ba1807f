"""Every verb on a tiny model; the verbs that need torch are in test_verbs_of_torch."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from patch_compile.cli import verbs
from patch_compile.io.masks_file import save_masks
from tests.cli.conftest import Cli, Job, Ran, refused
from tests.support import Linear, linear_model, masks_of, random_mask, random_weight

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed"
)


def _compile(cli: Cli, job: Job, *more: str) -> Ran:
    ran = cli(job.model, "--tiles", job.masks, "-o", job.out, *more)
    assert ran.code == 0, ran.err
    return ran


def _verify(cli: Cli, job: Job, *more: str | Path) -> Ran:
    compiled = job.out / "compiled.onnx"
    return cli("verify", job.model, compiled, "--tiles", job.masks, *more)


def _plant(job: Job) -> None:
    """Adds 1 to the first stored weight of the compiled model."""
    path = job.out / "compiled.onnx.data"
    weights = np.fromfile(path, np.float32)
    weights[0] += 1.0
    weights.tofile(path)


def test_the_main_job_writes_five_files_and_prints_the_table(cli: Cli, job: Job) -> None:
    ran = _compile(cli, job)
    assert sorted(path.name for path in job.out.iterdir()) == [
        "compiled.onnx",
        "compiled.onnx.data",
        "plan.json",
        "report.html",
        "report.json",
    ]
    assert ran.err == f"wrote {job.out / 'compiled.onnx'}\n"
    rows = {line.split()[0]: line.split() for line in ran.out.splitlines() if line}
    assert rows["a.weight"][1:3] == ["columns+merge", "band:8"]
    assert rows["b.weight"][1:3] == ["whole+merge", "weight"]
    assert "groups: 1 merge; 2 products in all" in ran.out
    assert "sparsity 37.50%, multiply-adds kept 62.50%" in ran.out
    assert "chosen by a GPU: unknown" in ran.out


def test_json_is_the_report_and_nothing_else(cli: Cli, job: Job) -> None:
    ran = _compile(cli, job, "--json")
    assert ran.out == (job.out / "report.json").read_text("utf-8")
    report = json.loads(ran.out)
    assert [weight["weight"] for weight in report["weights"]] == ["a.weight", "b.weight"]
    assert report["weights"][0]["digest"] == "match"
    assert report["totals"]["lowerings"] == {"columns": 1, "whole": 1}


def test_a_dry_run_says_the_same_and_writes_nothing(cli: Cli, job: Job) -> None:
    before = job.files()
    dry = cli(job.model, "--tiles", job.masks, "-o", job.out, "--dry-run", "--json")
    assert (dry.code, dry.err) == (0, "")
    assert job.files() == before
    assert not job.out.exists()
    assert dry.out == _compile(cli, job, "--json").out


def test_plan_gives_the_plan_of_the_main_job(cli: Cli, job: Job) -> None:
    path = job.folder / "plans" / "plan.json"
    before = job.files()
    shown = cli("plan", job.model, "--tiles", job.masks)
    assert (shown.code, job.files()) == (0, before)
    written = cli("plan", job.model, "--tiles", job.masks, "-o", path)
    assert (written.out, written.err) == (shown.out, f"wrote {path}\n")
    assert shown.out == _compile(cli, job).out
    assert path.read_bytes() == (job.out / "plan.json").read_bytes()
    printed = cli("plan", job.model, "--tiles", job.masks, "--json")
    assert printed.out == (job.out / "report.json").read_text("utf-8")


@pytest.mark.parametrize(
    ("patterns", "taken"),
    [
        (("--ignore", "a.*,nothing"), ["b.weight"]),
        (("--include", "re:^[bc]\\."), ["b.weight"]),
        (("--include", "*.weight", "--ignore", "re:^b\\.w.{3,5}$"), ["a.weight"]),
    ],
)
def test_weights_are_chosen_by_patterns(
    cli: Cli, job: Job, patterns: tuple[str, ...], taken: list[str]
) -> None:
    report = json.loads(_compile(cli, job, *patterns, "--json").out)
    assert [weight["weight"] for weight in report["weights"]] == taken
    assert _verify(cli, job).code == 0


def test_masks_are_inferred_from_zeros(cli: Cli, job: Job) -> None:
    weight = random_weight(np.random.default_rng(0), 16, 32)
    weight[:8, ::2] = 0.0
    linear_model([Linear("w", weight)], job.model)
    ran = cli(job.model, "--tiles", "infer", "--tile", "band:4", "-o", job.out, "--json")
    (found,) = json.loads(ran.out)["weights"]
    assert (found["sparse_tile_share"], found["sparsity"]) == (0.5, 0.25)
    assert found["lowering"] == "columns"
    assert cli("verify", job.model, job.out / "compiled.onnx", "--tiles", "infer").code == 0


def test_inspect_tells_zeros_and_tiles(cli: Cli, job: Job) -> None:
    _compile(cli, job, "--lowering", "columns", "--min-gain", "0")
    ran = cli("inspect", job.out / "compiled.onnx", "--tile", "4x16")
    assert (ran.code, ran.err) == (0, "")
    rows = [line.split() for line in ran.out.splitlines() if ".weight" in line]
    assert [row[2] for row in rows].count("yes") == 2
    assert "#" not in ran.out


def test_inspect_draws_maps(cli: Cli, job: Job) -> None:
    _compile(cli, job, "--lowering", "dense")
    ran = cli("inspect", job.out / "compiled.onnx", "--tile", "4x16", "--maps")
    assert ran.out.endswith("a.weight\n..\n..\n##\n##\nb.weight\n##\n##\n##\n##\n")


def test_inspect_prints_json(cli: Cli, job: Job) -> None:
    _compile(cli, job, "--lowering", "dense")
    ran = cli("inspect", job.out / "compiled.onnx", "--tile", "4x16", "--json")
    found = json.loads(ran.out)
    assert found["left_alone"] == {}
    a, b = found["weights"]
    assert (a["parameter"], a["shape"], a["zeros"]) == ("a.weight", [16, 32], 0.25)
    assert (a["tile_map"], a["eligible"]) == (["..", "..", "##", "##"], False)
    assert (b["sparse_tile_share"], b["eligible"]) == (1.0, True)


@pytest.mark.parametrize("options", [(), ("--restore",), ("--lowering", "dense")])
def test_verify_passes_what_was_compiled(cli: Cli, job: Job, options: tuple[str, ...]) -> None:
    _compile(cli, job, *options)
    ran = _verify(cli, job)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.count("pass") == 2
    assert "FAIL" not in ran.out


def test_verify_finds_a_planted_difference(cli: Cli, job: Job) -> None:
    _compile(cli, job)
    _plant(job)
    ran = _verify(cli, job)
    assert ran.code == 2
    assert ran.out.count("FAIL") == 1
    assert ran.err.startswith("patch-compile: ")
    assert ran.err.count("\n") == 1
    assert "compiled.onnx' | differs" in ran.err


def test_verify_holds_to_the_tolerances_given(cli: Cli, job: Job) -> None:
    _compile(cli, job)
    _plant(job)
    assert _verify(cli, job, "--atol", "100", "--rtol", "10").code == 0
    assert _verify(cli, job, "--atol", "100").code == 2
    assert _verify(cli, job, "--rtol", "10").code == 2


@pytest.mark.parametrize("planted", [False, True])
def test_verify_prints_json_whatever_it_finds(cli: Cli, job: Job, planted: bool) -> None:
    _compile(cli, job)
    if planted:
        _plant(job)
    ran = _verify(cli, job, "--json")
    found = json.loads(ran.out)
    assert ran.code == (2 if planted else 0)
    assert found["passed"] is not planted
    assert [output["name"] for output in found["outputs"]] == ["y_a", "y_b"]
    assert (found["perplexity"], found["tokens"]) == ({}, 0)


@pytest.mark.parametrize("name", ["report.json", "compiled.onnx.data"])
def test_verify_wants_the_files_beside_the_model(cli: Cli, job: Job, name: str) -> None:
    _compile(cli, job)
    (job.out / name).unlink()
    ran = _verify(cli, job)
    refused(ran, name)


def test_verify_of_a_restored_model_wants_its_plan(cli: Cli, job: Job) -> None:
    _compile(cli, job, "--restore")
    (job.out / "plan.json").unlink()
    ran = _verify(cli, job)
    assert ran.code == 1
    assert "plan.json" in ran.err


def _other_masks(job: Job) -> Path:
    """Masks that fit the model and are not the job's."""
    rng = np.random.default_rng(1)
    path = job.folder / "other.json"
    weight = random_weight(rng, 16, 32)
    a, b = (
        random_mask(rng, f"{name}.weight", weight, "weight", with_digests=False)
        for name in "ab"
    )
    save_masks(masks_of(a, b), path)
    return path


def test_verify_refuses_masks_of_another_compile(cli: Cli, job: Job) -> None:
    _compile(cli, job)
    other = _other_masks(job)
    before = job.files()
    ran = cli("verify", job.model, job.out / "compiled.onnx", "--tiles", other)
    refused(ran, f"masks '{other}' | are not those that '{job.out / 'compiled.onnx'}'")
    assert job.files() == before


def test_verify_takes_any_masks_where_the_model_remembers_none(cli: Cli, job: Job) -> None:
    _compile(cli, job)
    path = job.out / "compiled.onnx"
    proto = onnx.load(path, load_external_data=False)
    del proto.metadata_props[:]
    path.write_bytes(proto.SerializeToString())
    assert _verify(cli, job).code == 0
    assert cli("verify", job.model, path, "--tiles", _other_masks(job)).code == 2


def test_verify_knows_inferred_masks_of_a_cast_model(cli: Cli, job: Job) -> None:
    # fp16 makes zeros of these, and 2:4 tiles of what they are in.
    weight = random_weight(np.random.default_rng(0), 16, 32)
    weight[:, 2::4] = weight[:, 3::4] = 1e-9
    linear_model([Linear("a", weight)], job.model)
    inferred = ("--tiles", "infer", "--tile", "8x32")
    assert cli(job.model, *inferred, "--dtype", "fp16", "-o", job.out).code == 0
    ran = cli("verify", job.model, job.out / "compiled.onnx", "--tiles", "infer")
    assert (ran.code, ran.err) == (0, "")


@needs_rtx
def test_build_makes_one_engine_an_architecture(cli: Cli, job: Job) -> None:
    _compile(cli, job)
    compiled = job.out / "compiled.onnx"
    ran = cli("build", compiled, "--sm", "86,89", "--batch", "1,2,4", "--no-sparse")
    assert (ran.code, ran.err) == (0, "")
    lines = ran.out.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["engine", "compiled.sm86.engine:"],
        ["engine", "compiled.sm89.engine:"],
    ]
    assert all("sparse kernels not requested, chosen: unknown" in line for line in lines)
    facts = json.loads((job.out / "compiled.sm89.engine.json").read_text("utf-8"))
    assert facts["sm"] == [89]
    assert [shape[0] for shape in facts["profiles"]["x"]] == [1, 2, 4]
    assert (job.out / "compiled.sm86.engine").stat().st_size > 0


@needs_rtx
def test_build_prints_json_and_takes_a_folder(cli: Cli, job: Job) -> None:
    folder = job.folder / "engines"
    ran = cli("build", job.model, "-o", folder, "--json")
    assert (ran.code, ran.err) == (0, "")
    (engine,) = json.loads(ran.out)["engines"]
    assert engine["engine"] == "model.sm86.engine"
    assert engine["bytes"] == (folder / "model.sm86.engine").stat().st_size
    assert (engine["requested"], engine["chosen"]) == (True, "unknown")
    assert str(job.folder) not in ran.out


@needs_rtx
def test_the_main_job_builds_on_request_and_reports_it(cli: Cli, job: Job) -> None:
    ran = _compile(cli, job, "--engine", "tensorrt_rtx", "--sm", "86,89", "--json")
    report = json.loads(ran.out)
    assert ran.out == (job.out / "report.json").read_text("utf-8")
    assert [engine["sm"] for engine in report["engines"]] == [[86], [89]]
    assert (job.out / "compiled.sm89.engine").exists()
    assert _verify(cli, job).code == 0


@needs_rtx
def test_an_unknown_architecture_is_refused_by_its_name(cli: Cli, job: Job) -> None:
    ran = cli("build", job.model, "--sm", "42")
    refused(ran, "42")
    assert not list(job.folder.glob("*.engine"))


def test_demo_prints_its_table(cli: Cli, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_demo(output: Path, progress: object, say: object) -> str:
        return f"the table of {output.name}"

    monkeypatch.setattr(verbs, "run_demo", run_demo)
    ran = cli("demo", "-o", job.out)
    assert (ran.code, ran.out, ran.err) == (0, "the table of out\n", "")
