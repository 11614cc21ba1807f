"""Windows that a model cannot read are told in a line, whatever wants them read."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from patch_compile.errors import ModelError
from patch_compile.learn.permute import permute_model
from patch_compile.learn.readable import check_windows
from patch_compile.learn.training.learned import learn_gates
from patch_compile.learn.update import update_weights
from patch_compile.recipe import LearnRecipe, PermuteRecipe
from tests.learn.tiny import VOCABULARY, one_shot, short_recipe, tiny_model, write_text

# Of the tiny models, where they have learned any.
POSITIONS = 64
TOO_LONG = rf"^window \| has {POSITIONS + 1} tokens, the model has learned {POSITIONS} posi"


def _roberta() -> Any:
    config = transformers.RobertaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=1,
        num_attention_heads=4, max_position_embeddings=POSITIONS + 2, pad_token_id=1,
    )  # fmt: skip
    return transformers.RobertaForMaskedLM(config).eval()


def _module(kind: str) -> Any:
    return _roberta() if kind == "roberta" else tiny_model(kind).module.eval()


def _windows(tokens: int) -> Any:
    # Without the numbers that stand for padding.
    return np.random.default_rng(0).integers(2, VOCABULARY, (1, tokens))


@pytest.mark.parametrize("kind", ["gpt2", "opt", "bert", "roberta"])
def test_the_longest_window_is_read_and_no_longer_one(kind: str) -> None:
    module = _module(kind)
    check_windows(module, _windows(POSITIONS))
    longest = torch.from_numpy(_windows(POSITIONS))
    module(input_ids=longest)
    with pytest.raises(ModelError, match=TOO_LONG):
        check_windows(module, _windows(POSITIONS + 1))
    with pytest.raises((IndexError, RuntimeError)):
        module(input_ids=longest.repeat(1, 2)[:, : POSITIONS + 1])


def test_turned_positions_have_no_end() -> None:
    check_windows(tiny_model("llama").module, _windows(4 * POSITIONS))


def test_every_reader_tells(tmp_path: Path) -> None:
    text = write_text(tmp_path / "text.txt", 20 * (POSITIONS + 1))
    long: dict[str, Any] = {"samples": 2, "window": POSITIONS + 1}
    update = LearnRecipe(method="sparsegpt", update=True, structure="unstructured", **long)
    # Nothing is calibrated before these steps.
    blind = short_recipe(**long, prior="magnitude", tile_start="random")
    readers = [
        lambda: one_shot(tiny_model("gpt2"), text, LearnRecipe(**long)),
        lambda: permute_model(
            tiny_model("gpt2"), [text], PermuteRecipe(**long), tmp_path / "permuted"
        ),
        lambda: update_weights(tiny_model("gpt2"), [text], update, tmp_path / "updated"),
        lambda: learn_gates(tiny_model("gpt2"), [text], blind, tmp_path / "run"),
    ]
    for read in readers:
        with pytest.raises(ModelError, match=TOO_LONG):
            read()
