"""The script for a GPU machine: one verdict a claim, none of them by default.

The rehearsal runs all of it with TensorRT-RTX's builder under TensorRT's name, a trtexec that
answers as the published one does, and an nvidia-smi that names a GPU. What it calls good says
that the script works, and nothing of a GPU.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from patch_compile.runtimes.gpu import find_gpus
from tests.runtimes import published
from tests.runtimes.standin import stand_in

ROOT = Path(__file__).parent.parent

# Without a GPU no engine is asked for its layers, and RTX has no refit and no CUDA here.
SILENT = {
    "tensorrt tells the kernel of every sparse product",
    "tensorrt chooses sparse kernels for large products",
    "tensorrt takes the option[refit]",
    "tensorrts engine computes what onnxruntime computes",
    "the doctor finds gpu and driver working",
    "rtx tells of layers where there is a gpu",
    "tensorrt tells the memory that its engine takes",
}
# Tells of the model it is given what TensorRT would: a sparse kernel for every 2:4 product,
# where asked, and of the compiled model's time half.
DURING = """
import onnx
compiled = "compiled" in given.get("onnx", given.get("loadEngine", ""))
layers, sparse = [], 0
if "onnx" in given:
    for node in onnx.load(given["onnx"], load_external_data=False).graph.node:
        role = {p.key: p.value for p in node.metadata_props}.get("patch_compile.role", "dense")
        chosen = role == "sparse24" and given.get("sparsity") == "enable"
        sparse += role == "sparse24"
        kernel = "sm80_xmma_sparse_gemm_f16f16" if chosen else "sm80_xmma_gemm_f16f16"
        layers.append({"Name": node.name, "LayerType": "gemm", "TacticName": kernel})
    print("(Sparsity) Found", sparse, "layer(s) eligible to use sparse tactics")
    print("(Sparsity) Chose", sparse, "layer(s) using sparse tactics")
plain = write
def write(option, text):
    if option == "exportLayerInfo":
        text = json.dumps({"Layers": layers})
    if option == "exportTimes":
        text = json.dumps([{"computeMs": 1.0 if compiled else 2.0}] * 3)
    plain(option, text)
"""


@pytest.fixture
def rehearsal(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine that looks as if it had a GPU."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt-rtx is not installed")
    packages, programs = tmp_path / "packages", tmp_path / "bin"
    packages.mkdir()
    programs.mkdir()
    (packages / "tensorrt.py").write_text(
        "from tensorrt_rtx import *\nfrom tensorrt_rtx import __version__\n"
    )
    smi = programs / "nvidia-smi"
    row = "NVIDIA Stand-in, 8.6, 550.54, 24576"
    smi.write_text(
        f'#!/bin/sh\ncase "$*" in *uuid*) printf "0, GPU-1, ";; esac\necho "{row}"\n'
    )
    smi.chmod(0o755)
    trtexec = stand_in(programs, log=published.ISSUE_4177, during=DURING)
    return {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(packages), *sys.path]),
        "TRTEXEC": str(trtexec),
        "GPU_CHECK_SIZE": "128",
        "PYTHON": sys.executable,
    }


def _check(environment: dict[str, str], *arguments: Path) -> subprocess.CompletedProcess[str]:
    bash = shutil.which("bash")
    assert bash is not None
    return subprocess.run(
        [bash, "scripts/gpu_check.sh", *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


@pytest.mark.skipif(bool(find_gpus()), reason="there is a GPU: run it by hand")
def test_a_rehearsal_finds_every_claim_in_working_order(
    rehearsal: dict[str, str], tmp_path: Path
) -> None:
    done = _check(rehearsal, tmp_path / "result.json")
    rows = json.loads((tmp_path / "result.json").read_text("utf-8"))
    verdicts = {row["claim"]: row for row in rows}
    failed = {claim for claim, row in verdicts.items() if row["verdict"] == "FAILS"}
    assert failed <= SILENT, done.stdout
    held = {claim for claim, row in verdicts.items() if row["verdict"] == "holds"}
    assert len(held) >= 12, done.stdout
    for claim in (
        "trtexec chooses sparse kernels for large products",
        "the compiled engine is faster than the dense one beyond the noise",
        "a bundle runs on this machine and its results are read",
        "tensorrts timings are kept and taken again",
    ):
        assert claim in held, done.stdout
    assert "log: " in done.stdout


@pytest.mark.skipif(bool(find_gpus()), reason="there is a GPU: run it by hand")
def test_without_a_gpu_nothing_is_claimed() -> None:
    done = _check({**os.environ, "PYTHON": sys.executable})
    assert done.returncode == 3, done.stdout + done.stderr
    *claims, total, log = done.stdout.splitlines()
    assert {line.split("  ")[0] for line in claims} == {"not tested"}
    assert total == f"{len(claims)} not tested"
    assert log.startswith("log: ")
    assert len(claims) >= 15


# What the plugin writes.
KNOWN: list[dict[str, object]] = [
    {"event": "known", "id": f"t.py::test_{n}"} for n in ("a_b[x-y]", "c", "d", "e")
]


def _event(name: str, verdict: str | None = None, why: str = "") -> dict[str, object]:
    if verdict is None:
        return {"event": "started", "id": f"t.py::test_{name}"}
    event = {"event": "verdict", "id": f"t.py::test_{name}", "verdict": verdict}
    return {**event, "why": why, "seconds": 1.0}


def _summed(
    folder: Path, events: list[dict[str, object]], code: int
) -> tuple[int, list[str], list[dict[str, str]]]:
    path, result = folder / "claims", folder / "r.json"
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    command = [sys.executable, "scripts/verdicts.py", path, str(code), result]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.returncode, done.stdout.splitlines(), json.loads(result.read_text("utf-8"))


def test_a_process_that_dies_fails_the_claim_it_was_at(tmp_path: Path) -> None:
    events = [*KNOWN, _event("a_b[x-y]"), _event("a_b[x-y]", "holds"), _event("c")]
    code, lines, rows = _summed(tmp_path, events, 139)
    assert code == 1
    assert lines == [
        "FAILS       c (the process ended with exit code 139 while testing it)",
        "not tested  d (the process ended with exit code 139 before it)",
        "not tested  e (the process ended with exit code 139 before it)",
        "1 holds, 1 FAILS, 2 not tested",
    ]
    assert [row["claim"] for row in rows] == ["a b[x-y]", "c", "d", "e"]


@pytest.mark.parametrize("code", [124, 137])
def test_a_claim_the_time_ended_does_not_fail(tmp_path: Path, code: int) -> None:
    events = [*KNOWN, _event("a_b[x-y]"), _event("a_b[x-y]", "holds"), _event("c")]
    status, lines, _ = _summed(tmp_path, events, code)
    assert status == 0
    assert lines[0] == "not tested  c (the time was over)"


def test_claims_that_were_not_tested_do_not_hold(tmp_path: Path) -> None:
    skipped = [_event(n, "not tested", "m") for n in ("a_b[x-y]", "c", "d", "e")]
    assert _summed(tmp_path, [*KNOWN, *skipped], 0)[0] == 3
    assert _summed(tmp_path, [], 0)[0] == 1


def test_the_plugin_writes_as_it_goes(tmp_path: Path) -> None:
    claims = tmp_path / "claims"
    (tmp_path / "test_x.py").write_text(
        "import os, pytest\n"
        "def test_that_holds(): pass\n"
        "def test_that_fails(): assert 1 == 2\n"
        "def test_that_waits(): pytest.skip('no GPU')\n"
        "@pytest.fixture\ndef broken(): raise ValueError('boom')\n"
        "def test_that_cannot_start(broken): pass\n"
        "def test_that_dies(): os._exit(9)\n"
    )
    command = [sys.executable, "-m", "pytest", "-p", "verdicts", "--claims", str(claims)]
    done = subprocess.run(
        [*command, "-p", "no:randomly", "-p", "no:cacheprovider", "-q", "test_x.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "scripts"), "CLAIMS_FD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 9
    events = [json.loads(line) for line in claims.read_text("utf-8").splitlines()]
    told = {e["id"].partition("::test_that_")[2]: e for e in events if e["event"] == "verdict"}
    assert {name: e["verdict"] for name, e in told.items()} == {
        "holds": "holds",
        "fails": "FAILS",
        "waits": "not tested",
        "cannot_start": "FAILS",
    }
    assert told["waits"]["why"] == "no GPU"
    assert "boom" in told["cannot_start"]["why"]
    assert events[-1] == {"event": "started", "id": "test_x.py::test_that_dies"}
    assert "FAILS       that fails (assert 1 == 2) [0 s]" in done.stdout
