"""`build` tells which products run sparse, as far as a GPU told."""

import importlib.util
import json
import shlex
import subprocess
from pathlib import Path

import pytest

from patch_compile.piece_sites import find_pieces
from patch_compile.runtimes import trtexec
from tests.cli.conftest import Cli, Job
from tests.runtimes import published
from tests.runtimes.standin import stand_in
from tests.support import unpack


@pytest.fixture
def compiled(cli: Cli, job: Job) -> Path:
    assert cli(job.model, "--tiles", job.masks, "-o", job.out).code == 0
    return job.out / "compiled.onnx"


def _layers(compiled: Path, tactic: str) -> str:
    """An engine of one layer a product, the 2:4 ones with this kernel."""
    sites, _ = find_pieces(compiled)
    layers = [
        {
            "Name": site.node,
            "LayerType": "gemm",
            "TacticName": tactic if site.role == "sparse24" else "sm80_xmma_gemm_f32f32",
            "Metadata": f"[ONNX Layer: {site.node}]",
        }
        for site in sites
    ]
    return json.dumps({"Layers": layers})


def test_a_sparse_kernel_reaches_table_and_report(
    cli: Cli, job: Job, compiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = _layers(compiled, "sm80_xmma_sparse_gemm_f16f16_sptensor16x8x32")
    tool = stand_in(job.folder, log=published.ISSUE_4177, layers=layers)
    monkeypatch.setenv("TRTEXEC", str(tool))
    ran = cli("build", compiled, "--engine", "trtexec")
    assert ran.code == 0
    assert "compiled.engine: 0.0 MB" in ran.out
    assert "GPU compute median 7.14139 ms" in ran.out
    assert "2:4 products 1: 1 chosen, 0 not chosen, 0 unknown" in ran.out
    assert "sm80_xmma_sparse_gemm" in ran.out
    (engine,) = json.loads((job.out / "report.json").read_text("utf-8"))["engines"]
    assert (engine["backend"], engine["chosen"], engine["layers"]) == ("trtexec", 1, 2)
    # Both multiply one X: their 2:4 pieces are one product.
    assert [weight["weight"] for weight in engine["weights"]] == ["a.weight+b.weight"]


def test_a_dense_kernel_comes_with_its_reason(
    cli: Cli, job: Job, compiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = stand_in(job.folder, layers=_layers(compiled, "sm80_xmma_gemm_f32f32"))
    monkeypatch.setenv("TRTEXEC", str(tool))
    ran = cli("build", compiled, "--engine", "trtexec")
    assert "2:4 products 1: 0 chosen, 1 not chosen, 0 unknown" in ran.out
    assert "not sparse: 1 (float has no sparse kernels; compile an fp16 model)" in ran.out


def test_silence_prints_no_table(
    cli: Cli, job: Job, compiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRTEXEC", str(stand_in(job.folder)))
    ran = cli("build", compiled, "--engine", "trtexec")
    assert ran.out.count("\n") == 1
    assert "chosen: unknown" in ran.out
    (engine,) = json.loads((job.out / "report.json").read_text("utf-8"))["engines"]
    assert (engine["chosen"], engine["layers"]) == ("unknown", "unknown")
    assert engine["weights"][0]["pieces"][0]["verdict"] == "unknown"


def test_flags_behind_two_dashes_are_trtexecs(
    cli: Cli, job: Job, compiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trtexec, "find_trtexec", lambda: None)
    raw = ("--memPoolSize=workspace:8G,dlaSRAM:1M", "--device=1")
    ran = cli("build", compiled, "--engine", "trtexec", "--batch", "1,2,3", "--", *raw)
    assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1)
    command = shlex.split(ran.err.partition("run there: ")[2])
    assert command[-2:] == list(raw)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--engine", "trtexec"), "program 'trtexec' | is neither on the PATH"),
        (("--engine", "tensorrt"), "package 'tensorrt' | is not installed"),
        (("--engine", "tensorrt_rtx"), "package 'tensorrt_rtx' | is not installed"),
        (("--engine", "tensorrt", "--sm", "86"), "sm | is 86; TensorRT builds for the GPU"),
    ],
)
def test_the_main_job_looks_for_the_backend_first(
    cli: Cli,
    job: Job,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    told: str,
) -> None:
    monkeypatch.setattr(trtexec, "find_trtexec", lambda: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    ran = cli(job.model, "--tiles", job.masks, "-o", job.out, *options)
    assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1)
    assert ran.err.startswith(f"patch-compile: {told}"), ran.err
    assert not job.out.exists()


def test_flags_are_refused_by_backends_without_trtexec(cli: Cli, job: Job) -> None:
    ran = cli("build", job.model, "--", "--device=1")
    assert ran.code == 1
    assert "flags | are for trtexec, as in --device=1; choose --engine trtexec" in ran.err


def test_flags_are_kept_in_a_configuration(
    cli: Cli, job: Job, compiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRTEXEC", str(stand_in(job.folder)))
    config = job.folder / "c.json"
    options = ("--engine", "trtexec", "--save-config", config)
    assert cli("build", compiled, *options, "--", "--device=1,2").code == 0
    assert json.loads(config.read_text("utf-8"))["build"]["flags"] == ["--device=1,2"]
    assert cli("build", compiled, "--config", config).code == 0
    facts = json.loads((job.out / "compiled.engine.json").read_text("utf-8"))
    assert facts["flags"][-1] == "--device=1,2"


def test_a_bundle_goes_out_and_its_results_come_back(
    cli: Cli, job: Job, compiled: Path
) -> None:
    bundle = job.folder / "out.tar"
    options = ("--dense", job.model, "--masks", job.masks)
    ran = cli("build", compiled, "--bundle", bundle, *options)
    assert (ran.code, ran.out) == (0, "")
    assert ran.err.startswith(f"wrote {bundle}; on the GPU machine: tar -xf out.tar")
    assert not list(job.out.glob("*.engine"))
    unpack(bundle, job.folder)
    folder = job.folder / "patch-compile-bundle"
    tool = stand_in(
        job.folder, log=published.JETSON_NEW, layers=_layers(compiled, "sm80_xmma_gemm_f32f32")
    )
    subprocess.run(
        ["bash", folder / "run.sh"],
        env={"PATH": "/usr/bin:/bin", "TRTEXEC": str(tool), "ROUNDS": "1"},
        check=True,
        capture_output=True,
    )
    ran = cli("results", folder / "results", "--into", compiled)
    assert (ran.code, ran.err) == (0, "")
    rows = {line.split()[0]: line.split()[1:] for line in ran.out.splitlines() if line}
    assert rows["compiled"] == ["0.0", "2", "2.375", "1.000", "39", "0"]
    assert "2:4 products 1: 0 chosen, 1 not chosen, 0 unknown" in ran.out
    report = json.loads((job.out / "report.json").read_text("utf-8"))
    assert [engine["engine"] for engine in report["engines"]] == [
        "compiled on NVIDIA RTX A6000"
    ]
    whole = json.loads(cli("results", folder / "results", "--json").out)
    assert whole["models"][0]["rounds_ms"] == {"0": [2.5, 2.25], "1": [2.5, 2.25]}


def test_masks_without_a_bundle_are_refused(cli: Cli, job: Job) -> None:
    ran = cli("build", job.model, "--masks", job.masks)
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert "give --bundle out.tar as well" in ran.err


def test_the_dense_model_is_built_beside_to_show_lost_fusions(
    cli: Cli, job: Job, compiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = stand_in(job.folder, layers=_layers(compiled, "sm80_xmma_gemm_f32f32"))
    monkeypatch.setenv("TRTEXEC", str(tool))
    ran = cli("build", compiled, "--engine", "trtexec", "--dense", job.model)
    assert ran.code == 0
    first, *rest = ran.out.splitlines()
    assert first.startswith("engine dense.engine: ")
    assert rest[0].startswith("engine compiled.engine: ")
    assert rest[-1] == "layers 2 of 4 nodes; the dense model's engine has 2"
    (engine,) = json.loads((job.out / "report.json").read_text("utf-8"))["engines"]
    assert (engine["layers"], engine["dense_layers"]) == (2, 2)
