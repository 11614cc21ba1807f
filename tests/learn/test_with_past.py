"""`export --with-past`: the cache is transformers' own, and so is the text made with it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from patch_compile.compiler import compile_model
from patch_compile.errors import ModelError
from patch_compile.io.onnx_model import load_model
from patch_compile.learn.export import WEIGHT, export_onnx
from patch_compile.learn.linears import prunable
from patch_compile.learn.model import LoadedModel
from patch_compile.learn.signatures import with_past
from patch_compile.passes.legal import sparse_pieces_are_24
from patch_compile.recipe import CompileRecipe, ExportRecipe, GenerateRecipe, LearnRecipe
from patch_compile.runtimes.decoding import Decoder, continued, open_decoder
from patch_compile.verification import verify
from tests.learn.tiny import VOCABULARY, one_shot, random_ids, tiny_model
from tests.support import run_ort

# Logits of the scaled models reach 0.7; sums of 172 products in another order.
TOLERANCE = 1e-4
KINDS = ["llama", "qwen2", "gemma", "gpt2", "opt", "windows"]
CAST = ExportRecipe(with_past=True)


@dataclass(frozen=True)
class Cached:
    model: LoadedModel
    path: Path
    decoder: Decoder


def scaled(kind: str) -> LoadedModel:
    """A model whose greedy text wanders; fresh random weights repeat one token for ever."""
    if kind == "windows":
        # Keys further back than four tokens are hidden, though the cache has them.
        model = tiny_model("mistral", layers=1)
        model.module.config.sliding_window = 4
    else:
        model = tiny_model(kind, layers=2 if kind == "llama" else 1)
    words: Any = model.module.get_input_embeddings()
    with torch.no_grad():
        for parameter in model.module.parameters():
            if parameter.dim() == 2 and parameter is not words.weight:
                parameter.mul_(12.0)
    return model


@pytest.fixture(scope="module", params=KINDS)
def cached(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Cached:
    model = scaled(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    path = export_onnx(model, folder / "model.onnx", CAST)
    return Cached(model, path, open_decoder(path))


def logits_of_torch(model: LoadedModel, ids: Any, **more: Any) -> Any:
    with torch.no_grad():
        return model.module(input_ids=ids, use_cache=False, **more).logits.numpy()


@settings(max_examples=10)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=5), st.integers(0, 1000))
def test_a_text_read_in_any_parts_gives_the_logits_of_torch(
    cached: Cached, parts: list[int], seed: int
) -> None:
    ids = random_ids((1, sum(parts)), seed)
    expected = logits_of_torch(cached.model, ids)[0]
    reader, done = cached.decoder.reader(), 0
    for part in parts:
        found = reader.read(ids[0, done : done + part].tolist())
        done += part
        np.testing.assert_allclose(found, expected[done - 1], rtol=0, atol=TOLERANCE)


def test_greedy_text_is_that_of_transformers(cached: Cached) -> None:
    recipe = GenerateRecipe(max_new_tokens=24)
    for seed in range(2):
        ids = random_ids((1, 5), seed)
        with torch.no_grad():
            expected = cached.model.module.generate(  # type: ignore[operator] # a mixin's
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=24,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )[0, 5:].tolist()
        rng = np.random.default_rng(0)
        steps = continued(cached.decoder.reader(), ids[0].tolist(), recipe, rng)
        assert [step.token for step in steps] == expected
        assert len(set(expected)) > 3


def test_the_mask_hides_what_pads_a_batch(cached: Cached) -> None:
    ids = random_ids((2, 6))
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    places = (mask.cumsum(1) - 1).clamp(min=0)
    feeds = {
        name: np.zeros((2, *shape[1:]), np.float32)
        for name, shape in _past_shapes(cached.path).items()
    }
    feeds["input_ids"], feeds["attention_mask"] = ids.numpy(), mask.numpy()
    feeds["position_ids"] = places.numpy()
    found = run_ort(cached.path, feeds, optimise=True)["logits"]
    alone = logits_of_torch(cached.model, ids[:1, 2:])
    np.testing.assert_allclose(found[:1, 2:], alone, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(
        found[1:], logits_of_torch(cached.model, ids[1:]), rtol=0, atol=TOLERANCE
    )


def _past_shapes(path: Path) -> dict[str, list[int]]:
    graph = onnx.load(path, load_external_data=False).graph
    return {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in graph.input
        if value.name.startswith("past")
    }


def test_names_and_axes_are_optimums(cached: Cached) -> None:
    onnx.checker.check_model(str(cached.path), full_check=True)
    graph = onnx.load(cached.path, load_external_data=False).graph
    axes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    layers = cached.model.module.config.num_hidden_layers
    parts = [f"{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
    assert list(axes) == [
        *("input_ids", "attention_mask", "position_ids"),
        *(f"past_key_values.{part}" for part in parts),
        "logits",
        *(f"present.{part}" for part in parts),
    ]
    assert axes["input_ids"] == axes["position_ids"] == ["batch", "sequence"]
    assert axes["attention_mask"] == ["batch", "total_sequence"]
    assert axes["logits"] == ["batch", "sequence", VOCABULARY]
    for part in parts:
        batch, heads, past, size = axes[f"past_key_values.{part}"]
        assert (batch, past) == ("batch", "past_sequence")
        assert axes[f"present.{part}"] == ["batch", heads, "total_sequence", size]


def test_masked_products_bind_and_compile_as_without_a_past(
    cached: Cached, tmp_path: Path
) -> None:
    module = cached.model.module
    recipe = LearnRecipe(method="magnitude", select="error", tile="band:16", sparsity=(0.3,))
    masks = one_shot(cached.model, None, recipe)
    labels = {
        entry.value
        for node in onnx.load(cached.path, load_external_data=False).graph.node
        for entry in node.metadata_props
        if entry.key == WEIGHT
    }
    assert labels >= prunable(module).keys()
    compiled = compile_model(cached.path, masks, CompileRecipe(min_gain=0.0))
    out = compiled.save(tmp_path / "out")
    assert {n for weight in compiled.report.weights for n in weight.masks} == set(
        masks.weights
    )
    assert {weight.bound_by for weight in compiled.report.weights} == {"name"}
    assert compiled.report.totals["eligible"] > 0
    assert sparse_pieces_are_24(load_model(out)) == []
    assert verify(cached.path, out, masks).passed
    _check_reading(cached, out, {n: mask.keep() for n, mask in masks.weights.items()})


def _check_reading(cached: Cached, compiled: Path, keeps: dict[str, Any]) -> None:
    """The compiled decoder reads in parts what the masked module reads at once."""
    linears = prunable(cached.model.module)
    ids = random_ids((1, 7))
    dense = logits_of_torch(cached.model, ids)
    before = {name: linears[name].weight.detach().clone() for name in keeps}
    with torch.no_grad():
        for name, keep in keeps.items():
            linears[name].matrix(linears[name].weight).mul_(torch.from_numpy(keep))
    expected = logits_of_torch(cached.model, ids)
    with torch.no_grad():
        for name, weight in before.items():
            linears[name].weight.copy_(weight)
    assert np.abs(expected - dense).max() > 10 * TOLERANCE
    reader = open_decoder(compiled).reader()
    for start, stop in ((0, 4), (4, 5), (5, 7)):
        found = reader.read(ids[0, start:stop].tolist())
        np.testing.assert_allclose(found, expected[0, stop - 1], rtol=0, atol=TOLERANCE)


def test_a_cache_that_goes_round_wrongly_would_be_seen(cached: Cached) -> None:
    """Keys given for values: the planted fault that the tests above must not miss."""
    ids = random_ids((1, 6))
    turned = {
        past: present.replace("key", "x").replace("value", "key").replace("x", "value")
        for past, present in cached.decoder.cache.items()
    }
    broken = Decoder(cached.decoder.session, "broken", turned, VOCABULARY).reader()
    broken.read(ids[0, :5].tolist())
    found = broken.read(ids[0, 5:].tolist())
    assert np.abs(found - logits_of_torch(cached.model, ids)[0, -1]).max() > 10 * TOLERANCE


def test_the_model_is_as_it_was(cached: Cached) -> None:
    assert "forward" not in vars(cached.model.module)
    out = cached.model.module(input_ids=random_ids((1, 3)), use_cache=True)
    assert out.past_key_values.get_seq_length() == 3


def test_narrow_floats_have_a_narrow_cache(tmp_path: Path) -> None:
    model = tiny_model("gpt2", layers=1, dtype="float16")
    recipe = ExportRecipe(dtype="fp16", with_past=True)
    path = export_onnx(model, tmp_path / "model.onnx", recipe)
    graph = onnx.load(path, load_external_data=False).graph
    kinds = {
        value.name: value.type.tensor_type.elem_type
        for value in (*graph.input, *graph.output)
        if value.name.startswith(("past", "present", "logits"))
    }
    assert set(kinds.values()) == {onnx.TensorProto.FLOAT16}
    assert open_decoder(path).reader().read([1, 2, 3]).dtype == np.float16


def test_stop_tokens_go_beside_the_model(cached: Cached) -> None:
    assert (cached.path.parent / "generation_config.json").is_file()


def _mamba() -> LoadedModel:
    config = transformers.MambaConfig(
        vocab_size=VOCABULARY, hidden_size=32, state_size=4, num_hidden_layers=1
    )
    module: Any = transformers.AutoModelForCausalLM.from_config(config)
    return LoadedModel(module, tiny_model(layers=0).tokenizer, "tiny-mamba")


@pytest.mark.parametrize("kind", ["bert", "mamba"])
def test_a_model_without_such_a_cache_is_refused_in_one_line(
    kind: str, tmp_path: Path
) -> None:
    model = _mamba() if kind == "mamba" else tiny_model(kind, layers=1)
    with pytest.raises(ModelError, match="keeps no keys and values of every token") as caught:
        export_onnx(model, tmp_path / "model.onnx", CAST)
    assert "\n" not in str(caught.value)
    assert "leave --with-past out" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_fails_while_it_is_changed_is_put_back() -> None:
    model = tiny_model("gpt2", layers=1)
    with pytest.raises(KeyError), with_past(model).prepared():
        vars(model.module)["no such entry"]
    assert "forward" not in vars(model.module)
