"""What `learn` refuses, in one line and before anything slow."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers

from patch_compile.learn.model import LoadedModel, save_checkpoint
from tests.cli.conftest import LEARN, Cli, refused
from tests.learn.tiny import tiny_config, tiny_model, tiny_tokenizer
from tests.support import contents


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
    refused(ran, f"patch-compile: {message}")


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
        refused(ran, "model | has no linear layer that can go 2:4")
        assert "in features are no multiple of 4" in ran.err


def test_a_run_of_another_model_is_told_in_one_line(
    cli: Cli, llama: Path, text: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    options = [*LEARN, "--data", text, "--steps", "1", "--run", run, "-o", tmp_path / "m.json"]
    assert cli("learn", llama, *options).code == 0
    ran = cli("learn", _doubled(tmp_path / "other"), *options, "--resume")
    refused(ran, f"run '{run}' | is of another model: model.layers.0.")
    assert re.search(r"weight sha256 [0-9a-f]{8}…, now sha256 [0-9a-f]{8}…; ", ran.err)


def test_masks_of_another_model_are_told_in_one_line(
    cli: Cli, llama: Path, tmp_path: Path
) -> None:
    masks = tmp_path / "m.json"
    made = ["--method", "magnitude", "--select", "error", "-o", masks]
    assert cli("learn", _doubled(tmp_path / "other"), *made).code == 0
    ran = cli("export", llama, "--masks", masks, "-o", tmp_path / "model.onnx")
    refused(ran, "model.layers.0.mlp.up_proj.weight")


def test_sparsities_of_one_file_are_told(
    cli: Cli, llama: Path, text: Path, tmp_path: Path
) -> None:
    path = tmp_path / "masks.json"
    options = [*LEARN, "--sparsity", "0.25,0.4,0.2500001"]
    ran = cli("learn", llama, "--data", text, *options, "-o", path)
    refused(ran, "sparsity | is 0.25,0.4,0.2500001, of which two would be written to ")
    assert not path.with_suffix(".run").exists()


def test_a_file_of_another_kind_is_told_before_learning(
    cli: Cli, llama: Path, text: Path, tmp_path: Path
) -> None:
    (tmp_path / "masks-0.4.json").write_text("{}")
    options = [*LEARN, "--sparsity", "0.25,0.4"]
    ran = cli("learn", llama, "--data", text, *options, "-o", tmp_path / "masks.json")
    refused(ran, f"masks '{tmp_path / 'masks-0.4.json'}' | would replace a file that is none")
    assert not (tmp_path / "masks.run").exists()


def test_learning_never_writes_over_its_model(
    cli: Cli, llama: Path, text: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(llama, tmp_path / "model"))
    before = contents(model)
    options = ["--data", text, "--samples", "2", "--window", "16"]
    for name in ("model.json", "config.json"):
        ran = cli("learn", model, *options, "-o", model / name)
        refused(ran, "move it away or choose another name")
    update = ["--method", "sparsegpt", "--update", "--checkpoint", f"{model}/../model"]
    ran = cli("learn", model, *options, *update, "-o", tmp_path / "masks.json")
    refused(ran, "is MODEL itself, whose weights would be overwritten")
    assert contents(model) == before


def test_an_update_needs_a_folder(cli: Cli, llama: Path, text: Path) -> None:
    ran = cli("learn", llama, "--data", text, "--method", "sparsegpt", "--update")
    refused(ran, "checkpoint | is missing, and --update makes new weights")


@pytest.mark.parametrize("flags", [["--resume"], ["--tensorboard"], ["--run", "folder"]])
def test_runs_are_of_methods_that_learn(
    cli: Cli, llama: Path, text: Path, flags: list[str]
) -> None:
    ran = cli("learn", llama, "--data", text, *flags)
    refused(ran, f"{flags[0][2:]} | is asked of method 'wanda', which takes no steps")


@pytest.mark.parametrize("place", ["folder", "masks.npz", "file/masks.json"])
def test_a_place_that_cannot_be_written_is_told_before_anything_slow(
    cli: Cli, tmp_path: Path, place: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("", "utf-8")
    ran = cli("learn", tmp_path / "no model", *LEARN, "-o", tmp_path / place)
    said = "cannot be written" if "/" in place else "expected a name in .json"
    refused(ran, said)


def test_a_run_s_folder_that_is_a_file_is_told(
    cli: Cli, llama: Path, text: Path, tmp_path: Path
) -> None:
    options = [*LEARN, "--steps", "1", "--run", text, "-o", tmp_path / "m.json"]
    ran = cli("learn", llama, "--data", text, *options)
    refused(ran, "is a file, or below one; expected a folder, which learning makes")


def test_an_empty_text_is_told_in_one_line(cli: Cli, llama: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text(" \n", "utf-8")
    ran = cli("learn", llama, "--data", empty, *LEARN, "-o", tmp_path / "masks.json")
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert "is empty" in ran.err


@pytest.mark.parametrize("verb", ["learn", "permute"])
def test_a_text_that_is_none_is_told_before_a_model_is_loaded(
    cli: Cli, tmp_path: Path, verb: str
) -> None:
    empty = tmp_path / "empty.txt"
    empty.touch()
    for text, message in (
        (empty, "is empty"),
        (tmp_path / "no.txt", "cannot be read: No such"),
    ):
        ran = cli(verb, tmp_path / "no-model", "--data", text, "-o", tmp_path / "out.json")
        refused(ran, f"text '{text}' | {message}")


def test_a_bad_tile_is_told_before_a_model_is_loaded(
    cli: Cli, text: Path, tmp_path: Path
) -> None:
    ran = cli("learn", tmp_path / "no-model", "--data", text, "--tile", "7x7")
    refused(ran, "tile width along K | is 7; expected a multiple of 4")
