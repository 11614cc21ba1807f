"""A model with its channels moved: the same function, and less to lose as 2:4."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

from patch_compile.api import permute_channels
from patch_compile.errors import ModelError, RecipeError
from patch_compile.learn import permute
from patch_compile.learn.axes import Axis
from patch_compile.learn.linears import find_linears
from patch_compile.learn.model import LoadedModel, load_model, save_checkpoint
from patch_compile.learn.permute import RECORD, Permuted, permute_model
from patch_compile.recipe import LearnRecipe, PermuteRecipe
from tests.learn.tiny import (
    one_shot,
    random_ids,
    tiny_config,
    tiny_model,
    tiny_tokenizer,
    write_text,
)
from tests.learn.training.taught import masked_loss, taught_model, write_counting
from tests.support import contents

KINDS = [
    *("llama", "llama, untied", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3"),
    *("gpt2", "opt"),
]
SAMPLES, WINDOW = 3, 16
Axes = tuple[Any, ...]
ALL: Axes = ("residual", "mlp", "heads")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt", SAMPLES * WINDOW)


def _permuted(
    model: LoadedModel, text: Path, folder: Path, axes: Axes = ALL
) -> tuple[Permuted, LoadedModel]:
    recipe = PermuteRecipe(axes=axes, samples=SAMPLES, window=WINDOW, rounds=6)
    return permute_model(model, [text], recipe, folder), load_model(str(folder))


def _model(kind: str = "llama", layers: int = 2) -> LoadedModel:
    """Weights of norms are random too: ones would hide where they are moved to."""
    if kind != "llama, untied":
        model = tiny_model(kind, layers)
    else:
        torch.manual_seed(0)
        config = tiny_config("llama", layers)
        config.tie_word_embeddings = False
        module = transformers.LlamaForCausalLM(config)
        model = LoadedModel(module, tiny_tokenizer(), kind)
    with torch.no_grad():
        for parameter in model.module.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape), alpha=0.2)
    return model


@torch.no_grad()
def _logits(model: LoadedModel) -> Any:
    return model.module(input_ids=random_ids((2, 12)), use_cache=False).logits


@pytest.mark.parametrize("axes", [ALL, ("residual",), ("mlp",), ("heads",)])
@pytest.mark.parametrize("kind", KINDS)
def test_checkpoint_computes_the_same_from_other_weights(
    kind: str, axes: Axes, text: Path, tmp_path: Path
) -> None:
    told, after = _permuted(_model(kind), text, tmp_path, axes)
    before = _model(kind)
    expected = _logits(before)
    torch.testing.assert_close(_logits(after), expected, rtol=0, atol=2e-6)
    assert {axis.kind for axis in told.axes} == {*axes}
    assert all(axis.after < axis.before for axis in told.axes)
    moved = find_linears(after.module)
    for name, linear in find_linears(before.module).items():
        old, new = linear.array(), moved[name].array()
        assert np.array_equal(np.sort(old, axis=None), np.sort(new, axis=None))
    columns = [name for name in moved if name.endswith(_summing(kind, axes[-1]))]
    assert columns
    for name in columns:
        old, new = find_linears(before.module)[name].array(), moved[name].array()
        assert not np.array_equal(old, new), name


def _summing(kind: str, axis: str) -> tuple[str, ...]:
    """Endings of weights that an axis must have changed."""
    if axis == "mlp":
        return ("down_proj.weight", "mlp.c_proj.weight", "fc2.weight")
    if axis == "heads":
        return ("o_proj.weight", "attn.c_proj.weight", "out_proj.weight")
    return ("up_proj.weight", "c_fc.weight", "fc1.weight")


def test_record_says_where_each_channel_was(text: Path, tmp_path: Path) -> None:
    before = {name: w.clone() for name, w in _model().module.state_dict().items()}
    _, after = _permuted(_model(), text, tmp_path)
    record = json.loads((tmp_path / RECORD).read_text("utf-8"))
    order = {axis["name"]: np.array(axis["order"]) for axis in record["axes"]}
    assert record["recipe"]["axes"] == [*ALL]
    stream = order["LlamaForCausalLM"][0]
    mlp = order["model.layers.1.mlp"][0]
    heads = order["model.layers.1.self_attn"]
    # Two heads of values of 16 channels; queries 0 and 1 read the first, 2 and 3 the second.
    values = np.concatenate([heads[0], 16 + heads[1]])
    queries = [16 * query + heads[query // 2] for query in range(4)]
    summed = np.concatenate(queries)
    now = after.module.state_dict()
    layer = "model.layers.1"
    for name, rows, columns in [
        (f"{layer}.mlp.gate_proj.weight", mlp, stream),
        (f"{layer}.mlp.up_proj.weight", mlp, stream),
        (f"{layer}.mlp.down_proj.weight", stream, mlp),
        (f"{layer}.self_attn.q_proj.weight", np.arange(64), stream),
        (f"{layer}.self_attn.k_proj.weight", np.arange(32), stream),
        (f"{layer}.self_attn.v_proj.weight", values, stream),
        (f"{layer}.self_attn.o_proj.weight", stream, summed),
        ("model.embed_tokens.weight", np.arange(128), stream),
    ]:
        assert torch.equal(now[name], before[name][rows][:, columns]), name
    assert torch.equal(now["model.norm.weight"], before["model.norm.weight"][stream])


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_what_is_known_of_weights_moves_with_their_channels(
    kind: str, text: Path, tmp_path: Path
) -> None:
    """An axis loses what it would have lost, had the residual stream not moved before."""
    every, _ = _permuted(_model(kind), text, tmp_path / "every")
    inner, _ = _permuted(_model(kind), text, tmp_path / "inner", ("mlp", "heads"))
    before = {axis.name: axis.before for axis in every.axes if axis.kind != "residual"}
    assert before == pytest.approx({axis.name: axis.before for axis in inner.axes}, rel=1e-5)


def test_dearest_groups_come_first(text: Path, tmp_path: Path) -> None:
    told, after = _permuted(_model("gpt2"), text, tmp_path, ("mlp",))
    weight = find_linears(after.module)["transformer.h.0.mlp.c_proj.weight"].array()
    assert weight.shape == (64, 256)
    lost = np.sort(weight.reshape(64, -1, 4) ** 2, axis=2)[:, :, :2].sum((0, 2))
    first, last = np.array_split(lost, 2)
    # The cost also counts inputs and gradients, so magnitudes only lean that way.
    assert first.mean() > last.mean()
    assert len(told.axes) == 2


def test_masks_cost_a_taught_model_less(tmp_path: Path) -> None:
    taught = taught_model(tmp_path / "taught")
    data = write_counting(tmp_path / "text.txt", 64)
    recipe = PermuteRecipe(samples=32, window=32)
    permute_channels(str(taught), data, tmp_path / "permuted", recipe)
    everything = LearnRecipe(sparsity=(0.5,), tile="weight", samples=32, window=32)
    losses = []
    for folder in (taught, tmp_path / "permuted"):
        model = load_model(str(folder))
        losses.append(masked_loss(model, one_shot(model, data, everything)))
    before, after = losses
    assert after < 0.95 * before


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_element_type_of_the_checkpoint_stays(dtype: str, text: Path, tmp_path: Path) -> None:
    save_checkpoint(tiny_model(dtype=dtype), tmp_path / "old")
    recipe = PermuteRecipe(axes=("mlp",), samples=SAMPLES, window=WINDOW, rounds=2)
    permute_channels(str(tmp_path / "old"), text, tmp_path / "new", recipe)
    config = json.loads((tmp_path / "new" / "config.json").read_text("utf-8"))
    assert config["dtype"] == dtype
    old, new = (
        load_model(str(tmp_path / name), {"bfloat16": "bf16", "float16": "fp16"}[dtype])
        for name in ("old", "new")
    )
    name = "model.layers.0.mlp.down_proj.weight"
    before, after = (model.module.state_dict()[name] for model in (old, new))
    assert torch.equal(before.sort(1).values, after.sort(1).values)
    assert not torch.equal(before, after)


def test_weights_that_do_not_fit_the_stated_type_keep_theirs(
    text: Path, tmp_path: Path
) -> None:
    old = tmp_path / "old"
    save_checkpoint(_model(), old)
    config = old / "config.json"
    stated = {**json.loads(config.read_text("utf-8")), "dtype": "bfloat16"}
    config.write_text(json.dumps(stated), "utf-8")
    recipe = PermuteRecipe(samples=SAMPLES, window=WINDOW, rounds=2)
    permute_channels(str(old), text, tmp_path / "new", recipe)
    torch.testing.assert_close(
        _logits(load_model(str(tmp_path / "new"))), _logits(_model()), rtol=0, atol=2e-6
    )


def test_type_that_is_not_stated_is_that_of_the_weights(text: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    save_checkpoint(tiny_model(dtype="bfloat16"), old)
    config = old / "config.json"
    told = json.loads(config.read_text("utf-8"))
    config.write_text(json.dumps({k: v for k, v in told.items() if k != "dtype"}), "utf-8")
    recipe = PermuteRecipe(samples=SAMPLES, window=WINDOW, rounds=2)
    permute_channels(str(old), text, tmp_path / "new", recipe)
    weights = load_file(tmp_path / "new" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}


@pytest.mark.parametrize("side", ["inner", "outer"])
def test_order_that_one_side_does_not_follow_is_caught(
    side: str, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted mutant: rows or columns stay."""

    def stay(axis: Axis, _order: Any, size: int | None = None) -> Any:
        return np.arange(size or axis.readers[0].shape[1])

    monkeypatch.setattr(Axis, side, stay)
    with pytest.raises(ModelError, match="computes something else once its channels have"):
        _permuted(_model(), text, tmp_path, ("mlp",))
    assert list(tmp_path.iterdir()) == []


def test_layer_that_tells_channels_apart_is_caught(text: Path, tmp_path: Path) -> None:
    model = _model()
    half = torch.arange(64) < 32
    layer: Any = model.module.get_submodule("model.layers.1.mlp")
    layer.register_forward_pre_hook(lambda _module, inputs: (inputs[0] * half,))
    with pytest.raises(ModelError, match="leave axes out, 'residual' first"):
        _permuted(model, text, tmp_path)
    _permuted(model, text, tmp_path, ("mlp", "heads"))


def test_model_that_minds_is_refused_before_the_work(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(permute, "calibrate")
    model = _model()
    layer: Any = model.module.get_submodule("model.layers.1.mlp.down_proj")
    layer.register_forward_pre_hook(lambda _module, x: (x[0] * torch.linspace(0, 1, 172),))
    message = _refusal(model, text, tmp_path, ("mlp",))
    assert message.startswith("model | computes something else")


def test_weights_of_another_model_are_not_mixed_with_ours(text: Path, tmp_path: Path) -> None:
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"theirs")
    before = contents(tmp_path)
    with pytest.raises(ModelError, match=r"holds weights of another model, 'model-00001-of"):
        _permuted(_model(), text, tmp_path)
    assert contents(tmp_path) == before
    _permuted(_model(), text, tmp_path / "own", ("mlp",))
    _permuted(_model(), text, tmp_path / "own", ("heads",))


def test_model_is_not_written_over(text: Path, tmp_path: Path) -> None:
    save_checkpoint(_model(), tmp_path)
    before = contents(tmp_path)
    with pytest.raises(RecipeError, match=r"output '.*' \| is MODEL itself"):
        permute_channels(str(tmp_path), text, f"{tmp_path}/.")
    assert contents(tmp_path) == before


def _refusal(model: LoadedModel, text: Path, folder: Path, axes: Axes = ALL) -> str:
    with pytest.raises(ModelError) as caught:
        _permuted(model, text, folder, axes)
    assert list(folder.iterdir()) == []
    return str(caught.value)


@pytest.mark.parametrize("kind", ["phi3", "bert"])
def test_model_with_other_layers_is_refused(kind: str, text: Path, tmp_path: Path) -> None:
    message = _refusal(tiny_model(kind), text, tmp_path)
    assert message.startswith("model | has no 'heads' that is known among [")
    assert message.endswith("in one module; leave 'residual' out")


def test_weights_that_are_not_known_are_refused(text: Path, tmp_path: Path) -> None:
    model = _model()
    odd: Any = torch.nn.Linear(64, 64)
    model.module.get_submodule("model.layers.0").add_module("adapter", odd)
    message = _refusal(model, text, tmp_path)
    assert message == (
        "weight 'model.layers.0.adapter.weight' | is of shape (64, 64), and what it does to "
        "the residual stream of 64 channels is not known; leave 'residual' out"
    )
    inside = _model()
    inside.module.get_submodule("model.layers.0.self_attn").add_module("gate", odd)
    message = _refusal(inside, text, tmp_path)
    assert message.startswith("weight 'model.layers.0.self_attn.gate.weight' | is not known")


def test_axis_that_groups_do_not_fill_is_refused(text: Path, tmp_path: Path) -> None:
    config = tiny_config("llama")
    config.intermediate_size = 170
    module = transformers.LlamaForCausalLM(config)
    message = _refusal(LoadedModel(module, tiny_tokenizer(), "odd"), text, tmp_path)
    assert message == (
        "model | has 170 channels in a part of 'model.layers.0.mlp'; expected a multiple of "
        "4, as groups have; leave 'mlp' out"
    )
    again = LoadedModel(transformers.LlamaForCausalLM(config), tiny_tokenizer(), "odd")
    told, _ = _permuted(again, text, tmp_path, ("residual", "heads"))
    assert {axis.kind for axis in told.axes} == {"residual", "heads"}


def test_heads_that_do_not_divide_values_are_refused(text: Path, tmp_path: Path) -> None:
    model = _model(layers=1)
    attention: Any = model.module.get_submodule("model.layers.0.self_attn")
    attention.head_dim = 24
    message = _refusal(model, text, tmp_path, ("heads",))
    assert message.endswith("in heads of 24; expected whole heads; leave 'heads' out")


def test_stream_of_two_widths_is_refused(text: Path, tmp_path: Path) -> None:
    config = transformers.OPTConfig(
        vocab_size=128, bos_token_id=0, eos_token_id=0, hidden_size=64, word_embed_proj_dim=32,
        ffn_dim=172, num_hidden_layers=1, num_attention_heads=4, max_position_embeddings=64,
    )  # fmt: skip
    module = transformers.OPTForCausalLM(config)
    model = LoadedModel(module, tiny_tokenizer(), "opt-350m")
    message = _refusal(model, text, tmp_path)
    assert message.startswith("model | reads and writes [64] channels where its embeddings")


def test_text_and_axes_are_checked(tmp_path: Path) -> None:
    short = write_text(tmp_path / "short.txt", 20)
    with pytest.raises(RecipeError, match="short"):
        permute_model(_model(), [short], PermuteRecipe(), tmp_path / "out")
    with pytest.raises(RecipeError, match=r"data \| is missing"):
        permute_model(_model(), [], PermuteRecipe(), tmp_path / "out")
    with pytest.raises(RecipeError, match=r"axes \| is empty"):
        PermuteRecipe(axes=())
    with pytest.raises(RecipeError, match=r"axes \| is mlp,mlp; expected each one once"):
        PermuteRecipe(axes=("mlp", "mlp"))
    with pytest.raises(RecipeError, match=r"rounds \| is 0"):
        PermuteRecipe(rounds=0)
    with pytest.raises(RecipeError, match=r"window \| is 2"):
        PermuteRecipe(window=2)
