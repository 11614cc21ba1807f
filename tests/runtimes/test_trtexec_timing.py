"""trtexec builds an engine a model and times it a process a round; a stand-in is run here."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from patch_compile.errors import ModelError, RuntimeUnavailable
from patch_compile.recipe import BenchRecipe
from patch_compile.runtimes.timing import open_timed
from tests.runtimes import published
from tests.runtimes.standin import stand_in
from tests.support import Linear, linear_model, random_weight, said

LOG = published.MEMORY_10 + published.CONTEXT_10 + published.ISSUE_4177
RECIPE = BenchRecipe(runtime="trtexec", tokens=(16, 64), batch=2, rounds=5, timeout=30.0)


@pytest.fixture
def model(tmp_path: Path, rng: np.random.Generator) -> Path:
    return linear_model([Linear("a", random_weight(rng, 16, 32))], tmp_path / "m.onnx")


def test_an_engine_is_built_for_all_tokens_and_timed_at_each(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRTEXEC", str(stand_in(tmp_path, log=LOG)))
    timed = open_timed(model, RECIPE, tmp_path / "kept")
    built = (tmp_path / "kept" / "m.engine.log").read_text("utf-8").splitlines()[0].split()
    # Tuned for the most tokens, of the recipe's batch.
    assert {"--minShapes=x:2x16x32", "--optShapes=x:2x64x32", "--maxShapes=x:2x64x32"} <= {
        *built
    }
    timed.feed(16)
    # computeMs of the published form of --exportTimes, in seconds.
    assert timed.times(20) == pytest.approx([2.5e-3, 2.25e-3])
    ran = (tmp_path / "kept" / "m.round.log").read_text("utf-8").splitlines()[0].split()
    assert {"--shapes=x:2x16x32", "--iterations=20", "--duration=1"} <= {*ran}
    assert {"--useCudaGraph", "--useSpinWait", "--noDataTransfers"} <= {*ran}
    assert not {"--onnx", "--separateProfileRun"} & {flag.partition("=")[0] for flag in ran}
    facts = timed.facts()
    assert (facts.version, facts.device) == ("10.5.0", "NVIDIA RTX A6000")
    assert facts.engine_bytes == (tmp_path / "kept" / "m.engine").stat().st_size
    assert facts.device_bytes == 501966352
    timed.close()
    assert (tmp_path / "kept" / "m.engine").is_file()


def test_without_a_cache_nothing_is_kept_and_kernels_are_chosen_anew(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said_to = tmp_path / "arguments"
    during = f"open({str(said_to)!r}, 'a').write(' '.join(sys.argv) + '\\n')"
    monkeypatch.setenv("TRTEXEC", str(stand_in(tmp_path, during=during)))
    places = []
    for _ in range(2):
        timed = open_timed(model, RECIPE)
        arguments = said_to.read_text("utf-8").splitlines()[-1]
        assert "--timingCacheFile" not in arguments
        engine = next(a for a in arguments.split() if a.startswith("--saveEngine="))
        places.append(Path(engine.partition("=")[2]).parent.parent)
        assert places[-1].is_dir()
        timed.close()
    assert not any(place.exists() for place in places)
    assert places[0] != places[1]


def test_a_round_that_fails_is_told_in_one_line(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    during = "sys.exit(4) if 'loadEngine' in given else None"
    monkeypatch.setenv("TRTEXEC", str(stand_in(tmp_path, during=during)))
    timed = open_timed(model, RECIPE)
    timed.feed(16)
    with pytest.raises(ModelError, match=r"trtexec failed with exit code 4") as caught:
        timed.times(5)
    said(caught)
    timed.close()


def test_a_round_that_hangs_is_stopped(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    during = "time.sleep(60) if 'loadEngine' in given else None"
    monkeypatch.setenv("TRTEXEC", str(stand_in(tmp_path, during=during)))
    timed = open_timed(model, replace(RECIPE, timeout=3.0))
    timed.feed(16)
    with pytest.raises(RuntimeUnavailable, match=r"did not finish in 3\.0 seconds"):
        timed.times(5)
    timed.close()


def test_a_failed_build_leaves_no_folder(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("TRTEXEC", str(stand_in(tmp_path, during="sys.exit(1)")))
    with pytest.raises(ModelError, match="trtexec"):
        open_timed(model, RECIPE)
    assert list((tmp_path / "temporary").iterdir()) == []
