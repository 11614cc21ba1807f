"""trtexec is run, followed and read; where it is missing its command is given."""

import json
import shlex
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from patch_compile.errors import ModelError, RuntimeUnavailable
from patch_compile.recipe import BuildRecipe
from patch_compile.runtimes import trtexec
from patch_compile.runtimes.engines import EngineResult, build_engine
from tests.runtimes import published
from tests.runtimes.standin import stand_in
from tests.support import Linear, linear_model, random_weight

RECIPE = BuildRecipe(engine="trtexec", batch=(1, 2, 4), sequence=(1, 64, 128), timeout=30.0)
LOG = published.ISSUE_4177 + published.JETSON_NEW


@pytest.fixture
def model(tmp_path: Path, rng: np.random.Generator) -> Path:
    return linear_model([Linear("a", random_weight(rng, 16, 32))], tmp_path / "m.onnx")


@pytest.fixture
def engine(model: Path) -> Path:
    return model.parent / "out" / "m.engine"


def test_without_the_program_its_command_is_given(
    model: Path, engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trtexec, "find_trtexec", lambda: None)
    with pytest.raises(RuntimeUnavailable, match=r"program 'trtexec' \| ") as caught:
        build_engine(model, engine, RECIPE)
    message = str(caught.value)
    assert "\n" not in message
    command = shlex.split(message.partition("run there: ")[2])
    assert command[0] == "trtexec"
    assert f"--onnx={model}" in command
    assert "--optShapes=x:2x64x32" in command
    assert "--bundle" in message
    assert not engine.parent.exists()


def _build(
    tool: Path, model: Path, engine: Path, monkeypatch: pytest.MonkeyPatch, timeout: float = 30
) -> EngineResult:
    monkeypatch.setenv("TRTEXEC", str(tool))
    return build_engine(model, engine, replace(RECIPE, timeout=timeout))


def test_log_files_and_times_become_the_result(
    model: Path, engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = stand_in(tmp_path, log=LOG, layers=published.ISSUE_4020)
    monkeypatch.setenv("TRTEXEC", str(tool))
    calls: list[tuple[int, int, str]] = []
    result = build_engine(model, engine, RECIPE, lambda *state: calls.append(state))
    assert (result.version, result.sm, result.chosen) == ("10.5.0", (86,), 0)
    evidence = result.evidence
    assert (evidence.device, evidence.sm) == ("NVIDIA RTX A6000", 86)
    assert evidence.sparsity.found == 39
    assert [layer.sparse for layer in evidence.layers] == [False, False, True]
    assert dict(evidence.symbols) == {"batch": 2, "sequence": 64}
    assert evidence.performance is not None
    assert evidence.performance.throughput == 130.298
    assert [call[2] for call in calls][-1] == "done"
    names = {file.name for file in engine.parent.iterdir()}
    assert {
        f"m.engine{s}" for s in ("", ".json", ".log", ".layers.json", ".times.json")
    } <= names
    facts = json.loads((engine.parent / "m.engine.json").read_text())
    assert facts["engine_sha256"] == sha256(engine.read_bytes()).hexdigest()
    assert facts["sparsity"] == {"requested": True, "found": 39, "chosen": 0}
    assert "--onnx=m.onnx" in facts["flags"]
    assert str(tmp_path) not in json.dumps(facts)


def test_the_timing_cache_lies_beside_the_engine_and_stays(
    model: Path, engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = "open(given['timingCacheFile'], 'a').write('kept')"
    tool = stand_in(tmp_path, during=keep)
    for _ in range(2):
        _build(tool, model, engine, monkeypatch)
    assert (engine.parent / "timing.cache").read_text() == "keptkept"


@pytest.mark.parametrize(
    ("during", "kind", "words"),
    [
        (
            "print('[E] [TRT] Error Code 4: bad node'); sys.exit(1)",
            ModelError,
            r"trtexec \| failed with exit code 1: Error Code 4: bad node; full log",
        ),
        ("os.kill(os.getpid(), 11)", RuntimeUnavailable, r"was ended by SIGSEGV: last words"),
        ("sys.exit(0)", ModelError, r"wrote no engine"),
    ],
)
def test_failures_leave_the_log_alone_and_one_line(
    model: Path,
    engine: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    during: str,
    kind: type[Exception],
    words: str,
) -> None:
    tool = stand_in(tmp_path, during=during)
    with pytest.raises(kind, match=words) as caught:
        _build(tool, model, engine, monkeypatch)
    assert "\n" not in str(caught.value)
    assert [file.name for file in engine.parent.iterdir()] == ["m.engine.log"]


def test_a_hang_is_stopped(
    model: Path, engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = stand_in(tmp_path, during="time.sleep(60)")
    with pytest.raises(RuntimeUnavailable, match=r"did not finish in 0\.5 seconds"):
        _build(tool, model, engine, monkeypatch, timeout=0.5)


def test_silence_is_unknown(
    model: Path, engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = _build(stand_in(tmp_path), model, engine, monkeypatch)
    assert result.chosen == "unknown"
    assert result.evidence.performance is None
