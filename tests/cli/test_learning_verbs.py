"""`learn` with a method that learns, and `cut`."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file

from patch_compile.io.load_masks import load_masks
from patch_compile.io.masks_file import save_masks
from patch_compile.learn.model import LoadedModel, save_checkpoint
from tests.cli.conftest import Cli
from tests.learn.tiny import tiny_config, tiny_model, tiny_tokenizer, write_text
from tests.support import band_mask, contents, masks_of, random_weight

LEARN = ["--method", "topk-ste", "--tile", "band:8", "--samples", "2", "--window", "16"]
LEARN += ["--holdout", "2"]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    save_checkpoint(tiny_model("llama", layers=1), folder)
    return folder


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return write_text(tmp_path / "text.txt", 900)


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
    assert len(rows) == 3


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
        _refused(ran, f"sparsity | is {wrong}; expected a number from 0.0 to 0.5")


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
        _refused(ran, "is read by this command, and would be overwritten; choose another name")
        assert ran.err.endswith("masks-0.1.json\n")
    _refused(cli("cut", scored, "--budget", "time:1.1x@a100-bf16:16"), "masks-cut.json")
    assert contents(folder) == before
    assert cli("cut", "masks.json", "--sparsity", "0.1", "-o", "masks-0.1.json").code == 0


def test_cut_never_writes_over_the_arrays_of_its_masks(cli: Cli, scored: Path) -> None:
    """Two indices over one file: the one of the file's name may be replaced, and is not."""
    other = Path(shutil.copy(scored, scored.with_name("copy.json")))
    before = contents(scored.parent)
    ran = cli("cut", other, "--sparsity", "0.1", "-o", scored)
    _refused(ran, "masks.safetensors' | is read by this command")
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
        printed[name] = done.stdout
    assert printed["two"] == printed["one"]
    logits = []
    for name in runs:
        (state,) = (tmp_path / f"{name}.run").glob("step-*.safetensors")
        logits.append(load_file(state))
        assert (tmp_path / f"{name}.run" / "log.csv").read_text("utf-8").count("\n") == 5
    for key, value in logits[0].items():
        # The processes' gradients are summed in another order than the passes'.
        np.testing.assert_allclose(logits[1][key], value, rtol=1e-4, atol=1e-5)
    # One process goes on with the run of two, here straight to its masks.
    again = [*runs["one"], "--run", str(tmp_path / "two.run"), "--resume"]
    subprocess.run([sys.executable, *again], check=True, env=environment)
    assert (tmp_path / "two.run" / "log.csv").read_text("utf-8").count("\n") == 5


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
    assert log.read_text("utf-8").count("\n") == 13
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shard", "full"], "shard | is 'full', and there is one process; launch several"),
        (["--sparsity", "0.6"], "sparsity | is 0.6; expected a number from 0.0 to 0.5"),
        (["--sparsity", "-0.1"], "sparsity | is -0.1; expected a number from 0.0 to 0.5"),
        (["--tile", "8x6"], "tile width along K | is 6; expected a multiple of 4"),
        (["--include", "none*"], "weights | none of 7 is chosen"),
        (["--method", "patch-tile", "--select", "error"], "select | is 'error', which method"),
        (["--tie", "mlp", "--tie-block", "6"], "tie-block | is 6; expected a multiple of 4"),
        (["--steps", "0"], "steps | is 0; expected a number from 1"),
        (["--sparsity", "nan"], "sparsity | is nan; expected a number from 0.0 to 0.5"),
        (["--sparsity", "0.2,0.7"], "sparsity | is 0.7; expected a number from 0.0 to 0.5"),
        (["--tile", "16"], "tile '16' | is not a geometry"),
        (
            ["--structure", "unstructured"],
            "structure | is 'unstructured', and method 'topk-ste'",
        ),
        (["--update", "true"], "update | is asked of method 'topk-ste'"),
        (["--checkpoint", "new"], "checkpoint | is 'new', and no weight changes"),
        (["--seed", "-1"], "seed | is -1; expected a number from 0 to"),
        (["--sparsity", "0"], "sparsity | 0 leaves every weight dense, nothing to learn"),
        (["--data", "hf:"], "text 'hf:' | names no data set"),
        (["--budget", "1.2x"], "budget | is '1.2x'; expected time:TIMESx@TARGET:TOKENS"),
        (["--method", "leap", "--prior", "descent"], "prior | is 'descent', which looks for"),
        (["--method", "leap", "--select", "fisher"], "select | is 'fisher', and unstructured"),
    ],
)
def test_bad_options_are_told_in_one_line(
    cli: Cli, llama: Path, text: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    defaults = {"--method": "topk-ste", "--samples": "2", "--window": "16"}
    given = dict(zip(options[::2], options[1::2], strict=True))
    asked = [word for pair in (defaults | given).items() for word in pair]
    ran = cli("learn", llama, "--data", text, *asked, "-o", tmp_path / "masks.json")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith(f"patch-compile: {message}"), ran.err
    assert ran.err.count("\n") == 1


def _refused(ran: Any, message: str) -> None:
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith("patch-compile: "), ran.err
    assert ran.err.count("\n") == 1
    assert message in ran.err


def _doubled(folder: Path) -> Path:
    """Another model: one weight is twice what it was."""
    model = tiny_model("llama", layers=1)
    weight: Any = model.module.get_parameter("model.layers.0.mlp.up_proj.weight")
    weight.data.mul_(2.0)
    save_checkpoint(model, folder)
    return folder


def test_a_model_with_nothing_to_prune_is_told_in_one_line(
    cli: Cli, text: Path, tmp_path: Path
) -> None:
    config = tiny_config("llama", 1)
    # In features of 6 and 10, none a multiple of 4.
    config.update({"hidden_size": 6, "intermediate_size": 10, "head_dim": 6})
    config.update({"num_attention_heads": 1, "num_key_value_heads": 1})
    factory: Any = transformers.AutoModelForCausalLM
    odd = LoadedModel(factory.from_config(config), tiny_tokenizer(), "odd")
    save_checkpoint(odd, tmp_path / "odd")
    for method in ("wanda", "topk-ste"):
        options = ["--method", method, *LEARN[2:]]
        ran = cli("learn", tmp_path / "odd", "--data", text, *options)
        _refused(ran, "model | has no linear layer that can go 2:4")
        assert "in features are no multiple of 4" in ran.err


def test_a_run_of_another_model_is_told_in_one_line(
    cli: Cli, llama: Path, text: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    options = [*LEARN, "--data", text, "--steps", "1", "--run", run, "-o", tmp_path / "m.json"]
    assert cli("learn", llama, *options).code == 0
    ran = cli("learn", _doubled(tmp_path / "other"), *options, "--resume")
    _refused(ran, f"run '{run}' | is of another model")


def test_masks_of_another_model_are_told_in_one_line(
    cli: Cli, llama: Path, tmp_path: Path
) -> None:
    masks = tmp_path / "m.json"
    made = ["--method", "magnitude", "--select", "error", "-o", masks]
    assert cli("learn", _doubled(tmp_path / "other"), *made).code == 0
    ran = cli("export", llama, "--masks", masks, "-o", tmp_path / "model.onnx")
    _refused(ran, "model.layers.0.mlp.up_proj.weight")


def test_sparsities_of_one_file_are_told(
    cli: Cli, llama: Path, text: Path, tmp_path: Path
) -> None:
    path = tmp_path / "masks.json"
    options = [*LEARN, "--sparsity", "0.25,0.4,0.2500001"]
    ran = cli("learn", llama, "--data", text, *options, "-o", path)
    _refused(ran, "sparsity | is 0.25,0.4,0.2500001, of which two would be written to ")
    assert not path.with_suffix(".run").exists()


def test_a_file_of_another_kind_is_told_before_learning(
    cli: Cli, llama: Path, text: Path, tmp_path: Path
) -> None:
    (tmp_path / "masks-0.4.json").write_text("{}")
    options = [*LEARN, "--sparsity", "0.25,0.4"]
    ran = cli("learn", llama, "--data", text, *options, "-o", tmp_path / "masks.json")
    _refused(ran, f"masks '{tmp_path / 'masks-0.4.json'}' | would replace a file that is none")
    assert not (tmp_path / "masks.run").exists()


def test_learning_never_writes_over_its_model(
    cli: Cli, llama: Path, text: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(llama, tmp_path / "model"))
    before = contents(model)
    options = ["--data", text, "--samples", "2", "--window", "16"]
    for name in ("model.json", "config.json"):
        ran = cli("learn", model, *options, "-o", model / name)
        _refused(ran, "move it away or choose another name")
    update = ["--method", "sparsegpt", "--update", "--checkpoint", f"{model}/../model"]
    ran = cli("learn", model, *options, *update, "-o", tmp_path / "masks.json")
    _refused(ran, "is MODEL itself, whose weights would be overwritten")
    assert contents(model) == before


def test_an_update_needs_a_folder(cli: Cli, llama: Path, text: Path) -> None:
    ran = cli("learn", llama, "--data", text, "--method", "sparsegpt", "--update")
    _refused(ran, "checkpoint | is missing, and --update makes new weights")


@pytest.mark.parametrize("flags", [["--resume"], ["--tensorboard"], ["--run", "folder"]])
def test_runs_are_of_methods_that_learn(
    cli: Cli, llama: Path, text: Path, flags: list[str]
) -> None:
    ran = cli("learn", llama, "--data", text, *flags)
    _refused(ran, f"{flags[0][2:]} | is asked of method 'wanda', which takes no steps")


@pytest.mark.parametrize("place", ["folder", "masks.npz", "file/masks.json"])
def test_a_place_that_cannot_be_written_is_told_before_anything_slow(
    cli: Cli, tmp_path: Path, place: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("", "utf-8")
    ran = cli("learn", tmp_path / "no model", *LEARN, "-o", tmp_path / place)
    said = "cannot be written" if "/" in place else "expected a name in .json"
    _refused(ran, said)


def test_a_run_s_folder_that_is_a_file_is_told(
    cli: Cli, llama: Path, text: Path, tmp_path: Path
) -> None:
    options = [*LEARN, "--steps", "1", "--run", text, "-o", tmp_path / "m.json"]
    ran = cli("learn", llama, "--data", text, *options)
    _refused(ran, "is a file, or below one; expected a folder, which learning makes")


def test_an_empty_text_is_told_in_one_line(cli: Cli, llama: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text(" \n", "utf-8")
    ran = cli("learn", llama, "--data", empty, *LEARN, "-o", tmp_path / "masks.json")
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert "is empty" in ran.err
