import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from patch_compile.errors import ModelError, PatchCompileError, RecipeError
from patch_compile.learn.model import LoadedModel, load_model, save_checkpoint
from tests.learn.tiny import random_ids, tiny_model
from tests.learn.tiny_gguf import write_gguf


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_checkpoint(tiny_model(layers=1), tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt"])
def test_saved_checkpoint_loads_as_the_same_model(kind: str, tmp_path: Path) -> None:
    saved = tiny_model(kind, layers=1)
    save_checkpoint(saved, tmp_path / "folder")
    loaded = load_model(str(tmp_path / "folder"))
    ids = random_ids((2, 8))
    assert loaded.name == "folder"
    assert torch.equal(loaded.module(ids).logits, saved.module(ids).logits)
    text = "w3 w5 w127"
    assert loaded.tokenizer(text)["input_ids"] == saved.tokenizer(text)["input_ids"]


def test_checkpoint_tells_old_and_new_readers_the_rope_base(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text("utf-8"))
    assert config["rope_theta"] == 10000.0
    # Transformers 4 writes no other.
    assert config.get("rope_parameters", config)["rope_theta"] == 10000.0


def test_failed_checkpoint_leaves_the_folder_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(layers=1)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model.tokenizer, "save_pretrained", full)
    with pytest.raises(ModelError, match="No space left"):
        save_checkpoint(model, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_name_that_is_no_path_is_said_to_be_looked_for(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="cannot be fetched"):
        load_model("no-such-model-nor-path")
    assert caplog.messages == [
        "model 'no-such-model-nor-path' | no such folder or file; asking the Hugging Face hub"
    ]


@pytest.mark.parametrize(
    ("dtype", "expected"), [("fp32", "float32"), ("fp16", "float16"), ("bf16", "bfloat16")]
)
def test_weights_come_in_the_type_asked_for(
    checkpoint: Path, dtype: str, expected: str
) -> None:
    loaded = load_model(str(checkpoint), dtype)
    assert loaded.dtype == expected
    assert {str(p.dtype) for p in loaded.module.parameters()} == {f"torch.{expected}"}


def test_model_is_in_evaluation_mode() -> None:
    model = tiny_model("gpt2", layers=1)
    model.module.train()
    LoadedModel(model.module, model.tokenizer, "again")
    ids = random_ids((1, 8))
    assert torch.equal(model.module(ids).logits, model.module(ids).logits)


def test_quantised_checkpoint_is_one_line(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text("utf-8"))
    packed = {**config, "quantization_config": {"quant_method": "fp8"}}
    (checkpoint / "config.json").write_text(json.dumps(packed), "utf-8")
    with pytest.raises(ModelError, match=r"is quantised \(fp8\), and masks are for float"):
        load_model(str(checkpoint))


def test_settings_that_cannot_be_saved_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As some releases of transformers refuse a temperature beside greedy decoding."""
    model = tiny_model(layers=1)

    def refuse(*_args: Any, **_options: Any) -> None:
        raise ValueError("`temperature` is set\nand more")

    monkeypatch.setattr(type(model.module), "save_pretrained", refuse)
    with pytest.raises(ModelError) as caught:
        save_checkpoint(model, tmp_path)
    assert str(caught.value) == (
        "model 'tiny-llama' | cannot be saved: `temperature` is set; mend its "
        "generation_config.json"
    )
    assert list(tmp_path.iterdir()) == []


def test_unknown_element_type_is_refused(checkpoint: Path) -> None:
    with pytest.raises(RecipeError, match="'int8'"):
        load_model(str(checkpoint), "int8")


def _config(text: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        (folder / "config.json").write_text(text, "utf-8")

    return edit


def _edit_weights(change: Callable[[dict[str, Any], str], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "model.safetensors"
        weights = load_file(path)
        change(weights, "model.layers.0.mlp.up_proj.weight")
        save_file(weights, path, {"format": "pt"})

    return edit


def _narrow(weights: dict[str, Any], name: str) -> None:
    weights[name] = weights[name][:8].clone()


def _garbage(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 64)


def _endless(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**config, "num_hidden_layers": 2**31}), "utf-8")


def _beside(name: str, text: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        (folder / name).write_text(text, "utf-8")

    return edit


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_endless, "has 2147483648 layers, by its configuration; expected 10000 at most"),
        (_beside("tokenizer.json", '{"version": 1}'), "has no tokenizer that can be read"),
        (
            _beside("tokenizer_config.json", '{"added_tokens_decoder": 1}'),
            "has no tokenizer that can",
        ),
        (_beside("tokenizer_config.json", "[]"), "has no tokenizer that can be read"),
        (_config("{"), "not a valid JSON"),
        (_config("{}"), "model_type"),
        (_config('{"model_type": "no-such"}'), "does not recognize this architecture"),
        (
            _config('{"model_type": "vit"}'),
            "is a 'vit', which is neither a causal nor a masked",
        ),
        (_garbage, "deserializing"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no file named"),
        (_edit_weights(lambda weights, name: weights.pop(name)), r"lacks 1 weights \['model"),
        (_edit_weights(_narrow), r"1 have another shape than config.json says \['model"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer"),
    ],
)
def test_damaged_folder_is_one_line_that_names_it(
    checkpoint: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(checkpoint)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(str(checkpoint))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"model '{checkpoint}' | ")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("/no/such/folder", "does not exist"),
        ("no-such.gguf", "does not exist"),
        ("owner/name/more", "does not exist"),
        ("owner/no-such-model", "is not on this disk and cannot be fetched"),
    ],
)
def test_missing_model_is_one_line(source: str, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        load_model(source)
    assert "\n" not in str(caught.value)


def test_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"does not end in \.gguf"):
        load_model(str(tmp_path / "weights.bin"))


@pytest.mark.parametrize("size", [20, 200, 2000, 40_000])
def test_gguf_that_is_cut_short_is_one_line(
    tmp_path: Path, rng: np.random.Generator, size: int
) -> None:
    write_gguf(tmp_path / "tiny.gguf", rng)
    whole = (tmp_path / "tiny.gguf").read_bytes()
    (tmp_path / "tiny.gguf").write_bytes(whole[:size])
    with pytest.raises(ModelError, match=r"cannot be (read|loaded)") as caught:
        load_model(str(tmp_path / "tiny.gguf"))
    assert "\n" not in str(caught.value)


def test_code_that_a_checkpoint_brings_is_never_run(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text("utf-8"))
    foreign = {"model_type": "foreign", "auto_map": {"AutoConfig": "evil.Evil"}}
    (checkpoint / "config.json").write_text(json.dumps({**config, **foreign}), "utf-8")
    (checkpoint / "evil.py").write_text(f"open({str(checkpoint / 'ran')!r}, 'w')", "utf-8")
    with pytest.raises(ModelError, match="contains custom code"):
        load_model(str(checkpoint))
    assert not (checkpoint / "ran").exists()


def test_damaged_gguf_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"not a model")
    with pytest.raises(PatchCompileError, match="GGUF") as caught:
        load_model(str(tmp_path / "bad.gguf"))
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(
    transformers.__version__.startswith("4."),
    reason="transformers 4 finds no BOS token in this file, and its tokenizer wants one",
)
def test_gguf_loads_and_saves_as_a_folder(tmp_path: Path, rng: np.random.Generator) -> None:
    tensors = write_gguf(tmp_path / "tiny.gguf", rng)
    loaded = load_model(str(tmp_path / "tiny.gguf"))
    up: Any = loaded.module.get_parameter("model.layers.0.mlp.up_proj.weight")
    assert loaded.name == "tiny.gguf"
    assert np.array_equal(up.detach().numpy(), tensors["blk.0.ffn_up"])
    save_checkpoint(loaded, tmp_path / "folder")
    config = json.loads((tmp_path / "folder" / "config.json").read_text("utf-8"))
    assert "quantization_config" not in config
    assert config["rope_theta"] == 5000.0
    again = load_model(str(tmp_path / "folder"))
    ids = random_ids((1, 8))
    assert torch.equal(again.module(ids).logits, loaded.module(ids).logits)


def test_loading_says_nothing(checkpoint: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_model(str(checkpoint))
    shutil.rmtree(checkpoint)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
