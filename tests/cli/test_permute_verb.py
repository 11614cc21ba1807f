"""`permute`, and what goes on from its checkpoint."""

import re
from pathlib import Path

import pytest

from patch_compile.learn.model import save_checkpoint
from tests.cli.conftest import Cli, refused
from tests.learn.tiny import tiny_model
from tests.support import contents

SHORT = ["--samples", "2", "--window", "16"]


def test_new_checkpoint_goes_all_the_way(
    cli: Cli, llama: Path, text: Path, tmp_path: Path
) -> None:
    before = contents(llama)
    new, masks = tmp_path / "new", tmp_path / "masks.json"
    ran = cli("permute", llama, "--data", text, *SHORT, "-o", new)
    lines = ran.out.splitlines()
    assert ran.code == 0
    assert re.fullmatch(
        r"residual stream: 64 channels, what 2:4 costs in the weights that read them falls by "
        r"\d+\.\d%",
        lines[0],
    )
    assert lines[1].startswith("MLPs: 172 channels, ")
    assert lines[2].startswith("attentions: 32 channels, ")
    assert re.fullmatch(r"largest difference of a logit \S+, largest logit \S+", lines[3])
    assert f"wrote {new}" in ran.err
    assert contents(llama) == before
    assert (new / "permutation.json").exists()
    assert cli("learn", new, "--data", text, *SHORT, "-o", masks).code == 0
    model = tmp_path / "model.onnx"
    assert cli("export", new, "--masks", masks, "-o", model).code == 0
    assert cli(model, "--tiles", masks, "-o", tmp_path / "out").code == 0
    compiled = tmp_path / "out" / "compiled.onnx"
    assert cli("verify", model, compiled, "--tiles", masks).code == 0
    # Masks of the new weights say so when they meet the old ones.
    old = cli("export", llama, "--masks", masks, "-o", tmp_path / "old.onnx")
    refused(old, "was made for other values than this float32 weight has")


def test_axes_are_chosen(cli: Cli, llama: Path, text: Path, tmp_path: Path) -> None:
    options = ["--axes", "heads,mlp", "--rounds", "3"]
    ran = cli("permute", llama, "--data", text, *SHORT, *options, "-o", tmp_path / "new")
    assert [line.split(":")[0] for line in ran.out.splitlines()[:2]] == ["attentions", "MLPs"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--axes", "rows"], "axes"),
        (["--axes", "mlp,mlp"], "axes | is mlp,mlp; expected each one once"),
        (["--rounds", "0"], "rounds | is 0; expected a number from 1"),
        (["--samples", "100000"], "51200000 are needed for 100000 windows"),
        (["--seed", "-1"], "seed | is -1; expected a number from 0"),
    ],
)
def test_bad_options_are_told_in_one_line(
    cli: Cli, llama: Path, text: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    new = tmp_path / "new"
    refused(cli("permute", llama, "--data", text, *options, "-o", new), message)
    assert not new.exists()


def test_model_is_not_overwritten(cli: Cli, llama: Path, text: Path) -> None:
    before = contents(llama)
    ran = cli("permute", llama, "--data", text, *SHORT, "-o", f"{llama}/")
    refused(ran, "is MODEL itself, whose weights would be overwritten; choose another folder")
    assert contents(llama) == before


def test_text_is_needed(cli: Cli, llama: Path, tmp_path: Path) -> None:
    ran = cli("permute", llama, *SHORT, "-o", tmp_path / "new")
    refused(ran, "data | is missing, and masks are made from a text; give --data TEXT")


def test_model_without_known_axes_names_what_to_leave_out(
    cli: Cli, text: Path, tmp_path: Path
) -> None:
    save_checkpoint(tiny_model("phi3"), tmp_path / "phi3")
    ran = cli("permute", tmp_path / "phi3", "--data", text, *SHORT, "-o", tmp_path / "new")
    refused(ran, "leave 'residual' out")
