from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from patch_compile.errors import ModelError
from patch_compile.learn.calibrate import Statistics, calibrate
from patch_compile.learn.grams import Grams
from patch_compile.learn.linears import find_linears, prunable
from patch_compile.learn.model import LoadedModel
from tests.learn.tiny import random_ids, tiny_model

UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture
def windows() -> NDArray[np.int64]:
    ids: NDArray[np.int64] = random_ids((3, 12)).numpy()
    return ids


def _calibrated(
    model: LoadedModel,
    windows: NDArray[np.int64],
    *,
    moments: bool = True,
    fisher: bool = True,
    fisher_rows: bool = False,
    grams: bool = False,
    bf16: bool = False,
) -> Statistics:
    linears = prunable(model.module)
    return calibrate(
        model.module,
        linears,
        windows,
        moments=moments,
        fisher=fisher,
        fisher_rows=fisher_rows,
        grams=grams,
        bf16=bf16,
    )


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_fisher_is_the_sum_of_squared_gradients(kind: str, windows: NDArray[np.int64]) -> None:
    model = tiny_model(kind)
    linears = prunable(model.module)
    expected = {name: np.zeros(linear.shape) for name, linear in linears.items()}
    for window in windows:
        ids = torch.from_numpy(window)[None]
        loss = model.module(input_ids=ids, labels=ids).loss
        weights = [linear.weight for linear in linears.values()]
        for (name, linear), gradient in zip(
            linears.items(), torch.autograd.grad(loss, weights), strict=True
        ):
            expected[name] += linear.matrix(gradient).double().numpy() ** 2
    statistics = _calibrated(model, windows)
    assert statistics.fisher.keys() == linears.keys()
    for name, fisher in statistics.fisher.items():
        assert fisher.dtype == np.float32
        # The same float32 gradients; only the order of three additions may differ.
        np.testing.assert_allclose(fisher, expected[name], rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("fisher", [True, False])
def test_rows_of_the_fisher_are_its_sums_over_in_features(
    kind: str, fisher: bool, windows: NDArray[np.int64]
) -> None:
    expected = _calibrated(tiny_model(kind), windows).fisher
    found = _calibrated(tiny_model(kind), windows, fisher=fisher, fisher_rows=True)
    assert found.fisher.keys() == (expected.keys() if fisher else set())
    assert found.fisher_rows.keys() == expected.keys()
    for name, rows in found.fisher_rows.items():
        np.testing.assert_allclose(rows, expected[name].sum(1, dtype=np.float64), rtol=1e-5)


def test_bf16_rounds_passes_and_not_sums(windows: NDArray[np.int64]) -> None:
    """Eight bits of a gradient are left, of a sum of their squares all 24."""
    model = tiny_model()
    exact, rounded = (_calibrated(model, windows, bf16=bf16) for bf16 in (False, True))
    for name, fisher in exact.fisher.items():
        found = rounded.fisher[name]
        assert found.dtype == np.float32
        assert not np.array_equal(found, fisher)
        assert np.abs(found - fisher).sum() < 0.1 * fisher.sum(), name
        np.testing.assert_allclose(rounded.moments[name], exact.moments[name], rtol=0.05)
    assert model.module.dtype == torch.float32


def test_moment_is_the_sum_of_squared_inputs(windows: NDArray[np.int64]) -> None:
    model = tiny_model()
    module: Any = model.module
    ids = torch.from_numpy(windows)
    with torch.no_grad():
        x = module.model.layers[0].input_layernorm(module.model.embed_tokens(ids))
    expected = (x.double() ** 2).sum(dim=(0, 1)).numpy()
    statistics = _calibrated(model, windows)
    moment = statistics.moments["model.layers.0.self_attn.q_proj.weight"]
    assert moment.dtype == np.float64
    # Squares are taken in float32.
    np.testing.assert_allclose(moment, expected, rtol=1e-6)
    twin = statistics.moments["model.layers.0.self_attn.v_proj.weight"]
    assert np.array_equal(moment, twin)
    assert statistics.moments["model.layers.1.mlp.down_proj.weight"].shape == (172,)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_gram_is_the_sum_of_the_inputs_products(kind: str, windows: NDArray[np.int64]) -> None:
    model = tiny_model(kind)
    inputs: dict[str, list[Any]] = {}
    handles = [
        linear.module.register_forward_hook(
            lambda _, x, __, name=name: inputs.setdefault(name, []).append(x[0].double())
        )
        for name, linear in prunable(model.module).items()
    ]
    with torch.no_grad():
        model.module(input_ids=torch.from_numpy(windows))
    for handle in handles:
        handle.remove()
    grams = _calibrated(model, windows, moments=False, fisher=False, grams=True).grams
    assert grams.keys() == inputs.keys()
    for name, (x,) in inputs.items():
        rows = x.flatten(0, 1)
        assert grams[name].dtype == np.float32
        # 36 products of float32 each.
        np.testing.assert_allclose(grams[name], (rows.T @ rows).numpy(), rtol=1e-4, atol=1e-4)


def test_layers_of_one_input_share_one_gram(windows: NDArray[np.int64]) -> None:
    grams = _calibrated(tiny_model(), windows, grams=True).grams
    layer = "model.layers.1.{}_proj.weight"
    query, key, value, gate, up = (
        grams[layer.format(name)]
        for name in ("self_attn.q", "self_attn.k", "self_attn.v", "mlp.gate", "mlp.up")
    )
    assert query is key
    assert query is value
    assert gate is up
    # Two layers of four inputs: what q, o, gate and down read.
    assert len({id(gram) for gram in grams.values()}) == 8


class _Reader(torch.nn.Module):
    """Two layers that read one tensor; `between` may change or replace it."""

    def __init__(self, between: Any) -> None:
        super().__init__()
        self.one, self.two = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
        self.between = between

    def forward(self, x: Any) -> Any:
        first = self.one(x)
        return first + self.two(self.between(x))


def _grams_of(reader: _Reader, inputs: list[Any]) -> Grams:
    module: Any = reader
    grams = Grams(find_linears(module))
    with torch.no_grad(), grams.watch():
        for x in inputs:
            reader(x)
    return grams


def test_a_tensor_that_was_written_to_is_another_input() -> None:
    shared = _grams_of(_Reader(lambda x: x), [torch.ones(3, 4)]).arrays()
    assert shared["one.weight"] is shared["two.weight"]
    written = _grams_of(_Reader(lambda x: x.add_(1.0)), [torch.ones(3, 4)]).arrays()
    assert (written["one.weight"] == 3.0).all()
    assert (written["two.weight"] == 12.0).all()


def test_layers_that_stop_sharing_are_refused() -> None:
    choice = iter([False, True])
    reader = _Reader(lambda x: x.clone() if next(choice) else x)
    with pytest.raises(ModelError, match=r"weight 'two\.weight' \| read what 'one\.weight'"):
        _grams_of(reader, [torch.ones(3, 4)] * 2)


def test_model_is_left_as_it_was(windows: NDArray[np.int64]) -> None:
    module = tiny_model().module
    linears = prunable(module)
    linears[UP].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    required = {name: p.requires_grad for name, p in module.named_parameters()}
    calibrate(module, linears, windows, moments=True, fisher=True, grams=True)
    assert all(torch.equal(value, before[n]) for n, value in module.state_dict().items())
    assert {n: p.requires_grad for n, p in module.named_parameters()} == required
    assert all(p.grad is None for p in module.parameters())
    hooks = [linear.module._forward_pre_hooks for linear in linears.values()]
    assert not any(hooks)
    assert not linears[UP].weight._post_accumulate_grad_hooks


def test_one_gradient_lives_at_a_time(
    windows: NDArray[np.int64], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()
    alive: list[int] = []
    add = torch.Tensor.addcmul_

    def spy(square: Any, *factors: Any) -> Any:
        alive.append(sum(p.grad is not None for p in model.module.parameters()))
        return add(square, *factors)

    monkeypatch.setattr(torch.Tensor, "addcmul_", spy)
    _calibrated(model, windows[:1])
    assert alive == [1] * 14


def test_without_fisher_nothing_runs_backward(
    windows: NDArray[np.int64], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("backward ran")

    model = tiny_model()
    expected = _calibrated(model, windows).moments
    monkeypatch.setattr(torch.Tensor, "backward", refuse)
    statistics = _calibrated(model, windows, fisher=False)
    assert statistics.fisher == {}
    assert all(np.array_equal(statistics.moments[name], expected[name]) for name in expected)


def test_without_moments_only_gradients_are_summed(windows: NDArray[np.int64]) -> None:
    statistics = _calibrated(tiny_model(), windows, moments=False)
    assert statistics.moments == {}
    assert len(statistics.fisher) == 14


def test_bf16_weights_give_nearly_the_same_fisher(windows: NDArray[np.int64]) -> None:
    exact = _calibrated(tiny_model(), windows).fisher[UP].ravel()
    rough = _calibrated(tiny_model(dtype="bfloat16"), windows).fisher[UP].ravel()
    assert rough.dtype == np.float32
    # Gradients carry 8 bits, their squares 7: a few percent, never a tenth.
    assert np.linalg.norm(rough - exact) < 0.1 * np.linalg.norm(exact)


def test_fp16_gradients_are_refused_and_fp16_moments_are_not(
    windows: NDArray[np.int64],
) -> None:
    model = tiny_model(dtype="float16")
    with pytest.raises(ModelError, match="fp16, whose gradients vanish"):
        _calibrated(model, windows)
    assert len(_calibrated(model, windows, fisher=False).moments) == 14


def test_nan_loss_is_refused(windows: NDArray[np.int64]) -> None:
    model = tiny_model()
    with torch.no_grad():
        prunable(model.module)[UP].weight[0, 0] = torch.nan
    with pytest.raises(ModelError, match=r"loss \| is nan"):
        _calibrated(model, windows)


def test_token_outside_the_vocabulary_is_refused(windows: NDArray[np.int64]) -> None:
    windows[1, 1] = 128
    with pytest.raises(ModelError, match="has token 128, the model knows 128"):
        _calibrated(tiny_model(), windows)


@pytest.mark.parametrize("grams", [False, True])
def test_layer_that_sees_nothing_is_named(windows: NDArray[np.int64], grams: bool) -> None:
    model = tiny_model()
    module: Any = model.module
    module.model.extra = torch.nn.Linear(8, 8)
    with pytest.raises(ModelError, match=r"weight 'model\.extra\.weight' \| did nothing"):
        _calibrated(model, windows, moments=not grams, fisher=False, grams=grams)


def test_progress_counts_windows(windows: NDArray[np.int64]) -> None:
    module = tiny_model().module
    seen: list[tuple[int, int, str]] = []
    calibrate(
        module,
        prunable(module),
        windows,
        moments=True,
        fisher=False,
        progress=lambda *step: seen.append(step),
    )
    assert seen == [(done, 3, "calibrating") for done in range(4)]
