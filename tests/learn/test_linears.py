import logging
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from patch_compile.errors import ModelError
from patch_compile.learn.linears import find_linears, prunable
from tests.learn.tiny import tiny_model


def test_llama_has_seven_prunable_linears_a_layer() -> None:
    found = prunable(tiny_model(layers=2).module)
    assert len(found) == 14
    shapes = {name.split(".")[-2]: linear.shape for name, linear in found.items()}
    assert shapes == {
        "q_proj": (64, 64),
        "k_proj": (32, 64),
        "v_proj": (32, 64),
        "o_proj": (64, 64),
        "gate_proj": (172, 64),
        "up_proj": (172, 64),
        "down_proj": (64, 172),
    }


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma", "gpt2", "opt"])
def test_names_are_the_names_of_parameters(kind: str) -> None:
    module = tiny_model(kind, layers=1).module
    for name, linear in prunable(module).items():
        assert module.get_parameter(name) is linear.weight


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_layer_multiplies_by_its_matrix_turned(kind: str) -> None:
    module = tiny_model(kind, layers=1).module
    for linear in prunable(module).values():
        n, k = linear.shape
        layer: Any = linear.module
        x = torch.linspace(-1.0, 1.0, 2 * k).reshape(2, k)
        bias = 0.0 if layer.bias is None else layer.bias
        expected = x @ torch.from_numpy(linear.array()).T + bias
        assert linear.array().shape == (n, k)
        assert linear.array().flags.c_contiguous
        # One float32 dot product of at most 256 terms, summed in another order.
        torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_output_head_stays_dense(tied: bool, caplog: pytest.LogCaptureFixture) -> None:
    module: Any = tiny_model(layers=1).module
    if not tied:
        module.lm_head.weight = nn.Parameter(module.lm_head.weight.detach().clone())
    with caplog.at_level(logging.INFO, "patch_compile.learn.linears"):
        found = prunable(module)
    assert "lm_head.weight" not in found
    assert "lm_head.weight" in find_linears(module)
    assert "lm_head.weight stays dense: it is the output head" in caplog.text


def _tie_to_embeddings(module: Any) -> None:
    module.model.extra = nn.Linear(64, 128, bias=False)
    module.model.extra.weight = module.get_input_embeddings().weight


def _share(module: Any) -> None:
    mlp = module.model.layers[0].mlp
    mlp.up_proj.weight = mlp.gate_proj.weight


def _odd(module: Any) -> None:
    module.model.extra = nn.Linear(66, 8)


def _integers(module: Any) -> None:
    layer = nn.Linear(64, 64)
    layer.weight = nn.Parameter(torch.zeros(64, 64, dtype=torch.int8), requires_grad=False)
    module.model.extra = layer


@pytest.mark.parametrize(
    ("change", "name", "reason"),
    [
        (_tie_to_embeddings, "model.extra.weight", "it is tied to the embeddings"),
        (_share, "model.layers.0.mlp.up_proj.weight", "several layers share it"),
        (_odd, "model.extra.weight", "its 66 in features are no multiple of 4"),
        (_integers, "model.extra.weight", "its elements are torch.int8, not floats"),
    ],
)
def test_unfit_weight_is_left_out_with_its_reason(
    change: Any, name: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    module = tiny_model(layers=1).module
    change(module)
    with caplog.at_level(logging.INFO, "patch_compile.learn.linears"):
        found = prunable(module)
    assert name not in found
    assert "model.layers.0.mlp.down_proj.weight" in found
    assert f"{name} stays dense: {reason}" in caplog.text


def test_include_and_ignore_choose_by_name() -> None:
    module = tiny_model(layers=2).module
    found = prunable(module, ("*.mlp.*",), (r"re:layers\.1\.",))
    assert [name.split(".")[-2] for name in found] == ["gate_proj", "up_proj", "down_proj"]
    assert all(".layers.0." in name for name in found)


def test_choice_of_nothing_names_what_there_was() -> None:
    with pytest.raises(ModelError, match=r"none of 7 is chosen, e.g. \['model.layers.0"):
        prunable(tiny_model(layers=1).module, ("no-such",))


def test_model_without_linears_is_refused_with_reasons() -> None:
    with pytest.raises(ModelError, match=r"'lm_head.weight' \(it is the output head\)"):
        prunable(tiny_model(layers=0).module)


def test_matrix_is_a_view_of_the_weight() -> None:
    linear = next(iter(prunable(tiny_model("gpt2", layers=1).module).values()))
    with torch.no_grad():
        linear.matrix(linear.weight)[3, 5] = 7.0
    assert linear.transposed
    assert linear.weight[5, 3] == 7.0
    assert linear.array()[3, 5] == np.float32(7.0)
