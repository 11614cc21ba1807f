from typing import Any

import pytest
import torch

from patch_compile.errors import ModelError
from patch_compile.learn.blocks import chain
from tests.learn.tiny import random_ids, tiny_model

KINDS = ["llama", "qwen2", "qwen3", "mistral", "gemma", "gpt2", "opt"]


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_one_after_the_other_are_the_model(kind: str) -> None:
    module: Any = tiny_model(kind, layers=3).module
    windows = random_ids((2, 12))
    found = chain(module, windows.numpy())
    with torch.no_grad():
        expected = module(input_ids=windows, output_hidden_states=True).hidden_states
    assert len(found.blocks) == 3
    for i, states in enumerate(found.hidden):
        for block, before in zip(found.blocks, expected, strict=False):
            # Alone and in a batch of two; sums in another order.
            torch.testing.assert_close(states, before[i : i + 1])
            states = block(states)
            assert not states.requires_grad


def test_hooks_are_gone_afterwards() -> None:
    module: Any = tiny_model().module
    chain(module, random_ids((1, 8)).numpy())
    layers = module.model.layers
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers)


def test_blocks_that_are_told_of_the_tokens_are_refused() -> None:
    module: Any = tiny_model().module
    told: list[float] = []
    module.model.embed_tokens.register_forward_hook(
        lambda _, ids, __: told.append(1.0 + float(ids[0][0, 0]))
    )
    module.model.rotary_emb.register_forward_hook(
        lambda _, __, angles: tuple(told[-1] * each for each in angles)
    )
    with pytest.raises(ModelError, match="does more between its blocks than pass states on"):
        chain(module, random_ids((2, 8)).numpy())


def test_a_block_that_runs_twice_is_refused() -> None:
    module: Any = tiny_model().module
    module.model.layers[1] = module.model.layers[0]
    with pytest.raises(ModelError, match="does not run each of its blocks once, in order"):
        chain(module, random_ids((1, 8)).numpy())


def test_a_model_that_skips_a_block_is_refused() -> None:
    module: Any = tiny_model().module
    module.config.num_hidden_layers = 1
    with pytest.raises(ModelError, match="does not run each of its blocks once, in order"):
        chain(module, random_ids((1, 8)).numpy())


def test_a_model_without_blocks_is_refused() -> None:
    module: Any = tiny_model().module
    module.model.layers = torch.nn.ModuleList()
    with pytest.raises(ModelError, match=r"LlamaForCausalLM, which has no blocks"):
        chain(module, random_ids((1, 8)).numpy())
