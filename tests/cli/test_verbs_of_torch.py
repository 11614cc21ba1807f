"""`learn` and `export` on a tiny Llama."""

import json
from pathlib import Path

import onnx
import pytest

from patch_compile.io.load_masks import load_masks
from patch_compile.learn.model import save_checkpoint
from tests.cli.conftest import Cli, refused
from tests.learn.tiny import tiny_model, write_text


def test_learn_writes_masks_and_tells_the_sparsity(
    cli: Cli, llama: Path, tmp_path: Path
) -> None:
    text = write_text(tmp_path / "text.txt", 256)
    path = tmp_path / "new" / "masks.json"
    options = ["--tile", "band:4", "--samples", "4", "--window", "32", "--sparsity", "0.2"]
    ran = cli("learn", llama, "--data", text, "-o", path, *options, "--ignore", "re:q_|k_")
    assert ran.code == 0, ran.err
    assert ran.err == f"wrote {path}\n"
    masks = load_masks(path)
    assert ran.out == f"5 weights, sparsity {masks.sparsity:.4%} (asked 20.00%)\n"
    assert masks.sparsity == pytest.approx(0.2, abs=0.01)
    assert not [name for name in masks.weights if "q_proj" in name or "k_proj" in name]


def test_learn_needs_no_text_for_magnitudes(cli: Cli, llama: Path, tmp_path: Path) -> None:
    path = tmp_path / "masks.json"
    ran = cli("learn", llama, "--method", "magnitude", "--select", "error", "-o", path)
    assert ran.code == 0, ran.err
    assert len(load_masks(path).weights) == 7


def test_learn_says_that_it_needs_text(cli: Cli, llama: Path, tmp_path: Path) -> None:
    ran = cli("learn", llama, "-o", tmp_path / "masks.json")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith("patch-compile: ")
    assert ran.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_updated_weights_are_exported_compiled_and_verified(
    cli: Cli, llama: Path, tmp_path: Path
) -> None:
    text = write_text(tmp_path / "text.txt", 256)
    masks, new, onnx_ = tmp_path / "masks.json", tmp_path / "new", tmp_path / "model.onnx"
    options = ["--method", "sparsegpt", "--update", "--checkpoint", new, "--tile", "band:8"]
    options += ["--samples", "4", "--window", "32", "--sparsity", "0.3", "-o", masks]
    ran = cli("learn", llama, "--data", text, *options)
    assert ran.code == 0, ran.err
    assert ran.err == f"wrote {new}\nwrote {masks}\n"
    # The old model is not the one that the masks are for.
    ran = cli("export", llama, "--masks", masks, "-o", onnx_)
    assert ran.code == 1
    assert ran.err.count("\n") == 1
    ran = cli("export", new, "--masks", masks, "--dtype", "fp16", "-o", onnx_)
    assert ran.code == 0, ran.err
    out = tmp_path / "out"
    ran = cli(onnx_, "--tiles", masks, "-o", out)
    assert ran.code == 0, ran.err
    ran = cli("verify", onnx_, out / "compiled.onnx", "--tiles", masks)
    assert ran.code == 0, ran.err


def test_export_checks_masks_and_writes_the_model(
    cli: Cli, llama: Path, tmp_path: Path
) -> None:
    masks, path = tmp_path / "masks.json", tmp_path / "onnx" / "model.onnx"
    cli("learn", llama, "--method", "magnitude", "--select", "error", "-o", masks)
    ran = cli("export", llama, "--masks", masks, "--dtype", "fp16", "-o", path)
    assert (ran.code, ran.out, ran.err) == (0, "", f"wrote {path}\n")
    names = {item.name for item in path.parent.iterdir()}
    assert {"model.onnx", "model.onnx.data", "tokenizer.json", "config.json"} <= names
    graph = onnx.load(path, load_external_data=False).graph
    assert [value.name for value in graph.output] == ["logits"]
    assert graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16


def test_export_refuses_the_masks_of_another_model(
    cli: Cli, llama: Path, tmp_path: Path
) -> None:
    masks, other = tmp_path / "masks.json", tmp_path / "other"
    save_checkpoint(tiny_model("qwen2", layers=2), other)
    cli("learn", other, "--method", "magnitude", "--select", "error", "-o", masks)
    ran = cli("export", llama, "--masks", masks, "-o", tmp_path / "onnx" / "model.onnx")
    refused(ran, "model.layers.")
    assert not (tmp_path / "onnx").exists()


def test_learn_and_export_refuse_a_folder_without_a_model(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for verb in ("learn", "export"):
        ran = cli(verb, tmp_path / "empty")
        refused(ran, "patch-compile: model '")


def test_masks_tell_how_they_were_made(cli: Cli, llama: Path, tmp_path: Path) -> None:
    path = tmp_path / "masks.json"
    cli("learn", llama, "--method", "magnitude", "--select", "error", "-o", path)
    made = json.loads(path.read_text("utf-8"))["made_by"]
    assert "magnitude" in json.dumps(made)
