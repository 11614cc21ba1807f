"""`learn` with a method that learns, and `cut`."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from patch_compile.io.load_masks import load_masks
from patch_compile.io.masks_file import save_masks
from patch_compile.learn.training.train import Trainer
from tests.cli.conftest import LEARN, Cli, refused
from tests.learn.tiny import write_text
from tests.support import band_mask, contents, masks_of, random_weight


def test_every_sparsity_gets_a_file(cli: Cli, llama: Path, text: Path, tmp_path: Path) -> None:
    path = tmp_path / "masks.json"
    options = [*LEARN, "--steps", "2", "--sparsity", "0.25,0.4"]
    ran = cli("learn", llama, "--data", text, *options, "-o", path)
    assert ran.code == 0, ran.err
    assert not path.exists()
    for sparsity in (0.25, 0.4):
        masks = load_masks(tmp_path / f"masks-{sparsity:g}.json")
        # Half a band of 8 x 172, in zeros, over the 40,000 weights.
        assert masks.sparsity == pytest.approx(sparsity, abs=0.01)
        assert f"wrote {tmp_path}/masks-{sparsity:g}.json\n" in ran.err
    rows = (tmp_path / "masks.run" / "log.csv").read_text("utf-8").splitlines()
    # A header, what held-out windows say of the start, two steps.
    assert len(rows) == 4
    judged = load_masks(tmp_path / "masks-0.4.json").made_by["held_out"]
    assert ran.out.splitlines()[-1] == (
        f"held-out loss {judged['end']['loss']:.4f} nats a token by "
        f"{tmp_path}/masks-0.4.json, {judged['start']['loss']:.4f} before learning; density "
        f"of the weights that learn {judged['end']['density']:.4f}, "
        f"{judged['start']['density']:.4f} before"
    )


@pytest.mark.parametrize(
    ("start", "end", "warned"),
    [
        ((1.0, 0.75), (1.1, 0.75), True),
        ((1.0, 0.75), (1.0, 0.75), False),
        ((1.1, 0.75), (1.0, 0.75), False),
        # Denser masks are better for free.
        ((1.0, 0.9), (1.1, 0.75), False),
        ((1.0, 0.7), (1.1, 0.75), True),
    ],
)
def test_masks_that_learning_made_worse_are_told(
    cli: Cli,
    llama: Path,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    start: tuple[float, float],
    end: tuple[float, float],
    warned: bool,
) -> None:
    judged = iter([start, end])
    monkeypatch.setattr(Trainer, "judge", lambda *_: next(judged))
    options = [*LEARN, "--steps", "1", "-o", tmp_path / "masks.json"]
    ran = cli("learn", llama, "--data", text, *options)
    assert ran.code == 0
    assert f"held-out loss {end[0]:.4f} nats a token by " in ran.out
    assert f"density of the weights that learn {end[1]:.4f}, {start[1]:.4f} before" in ran.out
    assert ("learning made the masks worse" in ran.err) == warned


def test_cut_lowers_what_learn_wrote(
    cli: Cli, llama: Path, text: Path, tmp_path: Path
) -> None:
    path, lower = tmp_path / "masks.json", tmp_path / "lower.json"
    options = ["--tile", "band:8", "--samples", "2", "--window", "16", "--sparsity", "0.4"]
    cli("learn", llama, "--data", text, *options, "-o", path)
    ran = cli("cut", path, "--sparsity", "0.2", "-o", lower)
    assert ran.code == 0, ran.err
    before, after = load_masks(path), load_masks(lower)
    assert ran.out == f"7 weights, sparsity {after.sparsity:.4%}\n"
    assert after.sparsity == pytest.approx(0.2, abs=0.01)
    for name, mask in after.weights.items():
        assert (before.weights[name].dense <= mask.dense).all()
    assert after.made_by["sparsity"] == after.sparsity
    ran = cli("cut", lower, "--sparsity", "0.3", "-o", tmp_path / "no.json")
    assert ran.code == 1
    assert "a cut only lowers it" in ran.err
    for wrong in ("-0.1", "nan", "0.7"):
        ran = cli("cut", lower, "--sparsity", wrong, "-o", tmp_path / "no.json")
        refused(ran, f"sparsity | is {wrong}; expected a number from 0.0 to 0.5")


@pytest.fixture
def scored(tmp_path: Path) -> Path:
    weight = random_weight(np.random.default_rng(0), 16, 32)
    mask = band_mask(np.random.default_rng(0), "a.weight", weight)
    scores = np.ones(mask.grid.tiles, np.float32)
    save_masks(masks_of(replace(mask, scores=scores)), tmp_path / "masks.json")
    return tmp_path / "masks.json"


def test_cut_never_writes_over_its_own_masks(
    cli: Cli, scored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = scored.parent
    monkeypatch.chdir(folder)
    (folder / "link.json").symlink_to(scored)
    before = contents(folder)
    for given in (
        ("masks.json", "--sparsity", "0.1"),
        (scored, "--sparsity", "0.1", "-o", "../" + str(folder.name) + "/masks.json"),
        ("masks.json", "--sparsity", "0.1", "-o", "link.json"),
    ):
        ran = cli("cut", *given)
        refused(ran, "is read by this command, and would be overwritten; choose another name")
        assert ran.err.endswith("masks-0.1.json\n")
    refused(cli("cut", scored, "--budget", "time:1.1x@a100-bf16:16"), "masks-cut.json")
    assert contents(folder) == before
    assert cli("cut", "masks.json", "--sparsity", "0.1", "-o", "masks-0.1.json").code == 0


def test_cut_never_writes_over_the_arrays_of_its_masks(cli: Cli, scored: Path) -> None:
    """Two indices over one file: the one of the file's name may be replaced, and is not."""
    other = Path(shutil.copy(scored, scored.with_name("copy.json")))
    before = contents(scored.parent)
    ran = cli("cut", other, "--sparsity", "0.1", "-o", scored)
    refused(ran, "masks.safetensors' | is read by this command")
    assert contents(scored.parent) == before


def test_a_budget_of_time_is_promised_in_one_line(
    cli: Cli, llama: Path, text: Path, tmp_path: Path
) -> None:
    made, lower = tmp_path / "masks.json", tmp_path / "lower.json"
    options = ["--tile", "weight", "--samples", "2", "--window", "16"]
    # So many tokens that even small products are faster 2:4.
    ran = cli(
        "learn", llama, "--data", text, *options, "--budget",
        "time:1.3x@rtx4090-bf16:16384:0.9,65536:0.1", "-o", made,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    masks = load_masks(made)
    promised = masks.made_by["budget"]["speedup"]
    assert promised >= 1.3
    assert ran.out == (
        f"7 weights, sparsity {masks.sparsity:.4%}\n"
        f"predicted {promised:.3f}x as fast as dense on rtx4090-bf16 "
        "at 16384:0.9,65536:0.1 tokens (asked 1.3x)\n"
    )
    ran = cli("cut", made, "--budget", "time:1.1x@rtx4090-bf16:16384", "-o", lower)
    assert ran.code == 0, ran.err
    assert "(asked 1.1x)" in ran.out
    assert load_masks(lower).sparsity < masks.sparsity
    ran = cli("cut", made, "--sparsity", "0.1", "-o", lower)
    assert "budget" not in load_masks(lower).made_by
    for wrong in ([], ["--sparsity", "0.1", "--budget", "time:1.1x@rtx4090-bf16:16384"]):
        ran = cli("cut", made, *wrong, "-o", lower)
        assert ran.code == 1
        assert ran.err.startswith("patch-compile: cut | needs one of --sparsity and --budget")


def test_both_texts_are_learned_from(
    cli: Cli, llama: Path, text: Path, tmp_path: Path
) -> None:
    other = write_text(tmp_path / "other.txt", 900, seed=1)
    options = [*LEARN, "--steps", "80", "-o", tmp_path / "masks.json"]
    ran = cli("learn", llama, "--data", text, *options)
    assert ran.code == 1
    assert "has 900 tokens; 1312 are needed for 82 windows of 16" in ran.err
    ran = cli("learn", llama, *options)
    assert "data | is missing, and masks are made from a text; give --data TEXT" in ran.err
    ran = cli("learn", llama, "--data", text, "--data", other, *options, "--resume")
    assert ran.code == 0, ran.err
    assert "masks.run' | has no checkpoint to go on from; learning starts at step 1" in ran.err


def _command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "patch_compile", *map(str, words)]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_was_stopped_goes_on_to_the_same_masks(
    llama: Path, text: Path, tmp_path: Path, how: signal.Signals
) -> None:
    options = [*LEARN, "--steps", "40", "--checkpoint-every", "1", "--sparsity", "0.3"]
    learn = _command("learn", llama, "--data", text, *options, "-o")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    stopped = subprocess.Popen(
        [*learn, str(tmp_path / "cut.json")],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    log = tmp_path / "cut.run" / "log.csv"
    while not log.exists() or log.read_text("utf-8").count("\n") < 4:
        assert stopped.poll() is None, stopped.communicate()[1]
        time.sleep(0.02)
    stopped.send_signal(how)
    _, errors = stopped.communicate(timeout=60)
    assert not (tmp_path / "cut.json").exists()
    if how == signal.SIGINT:
        assert stopped.returncode == 130
        assert "keeps what was learned so far; go on with --resume\n" in errors
    for name, more in (("cut.json", ["--resume"]), ("whole.json", [])):
        subprocess.run([*learn, str(tmp_path / name), *more], check=True, env=environment)
    cut, whole = load_masks(tmp_path / "cut.json"), load_masks(tmp_path / "whole.json")
    for name, mask in whole.weights.items():
        assert np.array_equal(mask.bits(), cut.weights[name].bits())
        assert np.array_equal(mask.dense, cut.weights[name].dense)


def test_two_processes_are_one_with_two_passes_a_step(
    llama: Path, text: Path, tmp_path: Path
) -> None:
    options = ["--method", "patch-joint", *LEARN[2:], "--steps", "4", "--sparsity", "0.3"]
    alone = ["-m", "patch_compile", "learn", str(llama), "--data", str(text), *options, "-o"]
    together = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    runs = {
        "one": [*alone, str(tmp_path / "one.json"), "--accumulate", "2"],
        "two": [*together, *alone, str(tmp_path / "two.json")],
    }
    printed = {}
    for name, words in runs.items():
        done = subprocess.run(
            [sys.executable, *words],
            check=True,
            env=environment,
            capture_output=True,
            text=True,
        )
        # Each has a file of its own.
        printed[name] = done.stdout.replace(f"{name}.json", "")
    assert printed["two"] == printed["one"]
    logits = []
    for name in runs:
        (state,) = (tmp_path / f"{name}.run").glob("step-*.safetensors")
        logits.append(load_file(state))
        assert (tmp_path / f"{name}.run" / "log.csv").read_text("utf-8").count("\n") == 6
    for key, value in logits[0].items():
        # The processes' gradients are summed in another order than the passes'.
        np.testing.assert_allclose(logits[1][key], value, rtol=1e-4, atol=1e-5)
    # One process goes on with the run of two, here straight to its masks.
    again = [*runs["one"], "--run", str(tmp_path / "two.run"), "--resume"]
    subprocess.run([sys.executable, *again], check=True, env=environment)
    assert (tmp_path / "two.run" / "log.csv").read_text("utf-8").count("\n") == 6


def test_spread_weights_go_on_after_a_kill_to_what_one_process_gives(
    llama: Path, text: Path, tmp_path: Path
) -> None:
    options = ["--method", "patch-joint", *LEARN[2:], "--steps", "12", "--sparsity", "0.3"]
    options += ["--checkpoint-every", "1"]
    alone = ["-m", "patch_compile", "learn", str(llama), "--data", str(text), *options, "-o"]
    together = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    spread = [sys.executable, *together, *alone, str(tmp_path / "two.json")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    log = tmp_path / "two.run" / "log.csv"
    # A session of its own: the launcher dies with what it launched.
    killed = subprocess.Popen(
        [*spread, "--shard", "full"], env=environment, start_new_session=True
    )
    while not log.exists() or log.read_text("utf-8").count("\n") < 4:
        assert killed.poll() is None
        time.sleep(0.02)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait(timeout=60)
    assert not (tmp_path / "two.json").exists()
    # The other way to ask, as `accelerate launch` with an FSDP config puts it.
    asked = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    one = [sys.executable, *alone, str(tmp_path / "one.json"), "--accumulate", "2"]
    for words, more in (([*spread, "--resume"], asked), (one, {})):
        subprocess.run(words, check=True, env={**environment, **more})
    assert log.read_text("utf-8").count("\n") == 14
    logits = []
    for name in ("one", "two"):
        (state,) = (tmp_path / f"{name}.run").glob("step-*.safetensors")
        logits.append(load_file(state))
    for key, value in logits[0].items():
        # The processes' gradients are summed in another order than the passes'.
        np.testing.assert_allclose(logits[1][key], value, rtol=1e-4, atol=1e-5)
    one_mask, two_mask = (load_masks(tmp_path / f"{name}.json") for name in ("one", "two"))
    for name, mask in one_mask.weights.items():
        assert np.array_equal(mask.bits(), two_mask.weights[name].bits())
    assert two_mask.made_by["recipe"]["shard"] == "full"
