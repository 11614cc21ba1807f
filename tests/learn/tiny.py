"""Tiny random causal language models and a tokenizer for them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from patch_compile.learn.model import LoadedModel
from patch_compile.learn.oneshot import rank_tiles
from patch_compile.recipe import LearnRecipe
from patch_compile.tiles.masks import Masks

VOCABULARY = 128

_SHAPE: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0}
_LLAMA: dict[str, Any] = {
    **_SHAPE,
    "hidden_size": 64,
    # As in stories260K: 172 = 4 x 43, so that every tile size leaves a rest.
    "intermediate_size": 172,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}


def tiny_config(kind: str, layers: int = 2) -> Any:
    if kind == "llama":
        return transformers.LlamaConfig(**_LLAMA, num_hidden_layers=layers)
    if kind == "qwen2":
        return transformers.Qwen2Config(**_LLAMA, num_hidden_layers=layers)
    if kind == "qwen3":
        # Heads of their own size: 4 x 24 is not the hidden size.
        return transformers.Qwen3Config(**_LLAMA, head_dim=24, num_hidden_layers=layers)
    if kind == "mistral":
        return transformers.MistralConfig(**_LLAMA, num_hidden_layers=layers)
    if kind == "gemma":
        return transformers.GemmaConfig(**_LLAMA, head_dim=16, num_hidden_layers=layers)
    if kind == "gemma2":
        # Capped logits, and every other layer sees a window.
        return transformers.Gemma2Config(
            **_LLAMA, head_dim=16, num_hidden_layers=layers, sliding_window=8
        )
    if kind == "gemma3":
        return transformers.Gemma3TextConfig(
            **_LLAMA, head_dim=16, num_hidden_layers=layers, sliding_window=8
        )
    if kind == "phi3":
        # q, k and v are one weight, gate and up another.
        return transformers.Phi3Config(**_LLAMA, num_hidden_layers=layers, pad_token_id=0)
    if kind == "gpt2":
        return transformers.GPT2Config(
            **_SHAPE, n_embd=64, n_layer=layers, n_head=4, n_positions=64
        )
    if kind == "bert":
        return transformers.BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=64,
            intermediate_size=172,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=64,
        )
    assert kind == "opt"
    return transformers.OPTConfig(
        **_SHAPE,
        hidden_size=64,
        word_embed_proj_dim=64,
        ffn_dim=172,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=64,
    )


def tiny_model(kind: str = "llama", layers: int = 2, dtype: str = "float32") -> LoadedModel:
    """A model whose weights are random, biases too, so that none can be mistaken."""
    torch.manual_seed(0)
    config = tiny_config(kind, layers)
    masked = kind == "bert"
    factory: Any = transformers.AutoModelForMaskedLM if masked else None
    module = (factory or transformers.AutoModelForCausalLM).from_config(config)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0.0, 0.1)
    return LoadedModel(
        module.to(getattr(torch, dtype)), tiny_tokenizer(masked), f"tiny-{kind}"
    )


def tiny_tokenizer(masked: bool = False) -> Any:
    """One token a word: `w0` is 0, `w1` is 1, and so on; it puts `w0` before every text.

    That of a masked model hides words behind `w1`.
    """
    words = {f"w{i}": i for i in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    factory: Any = transformers.PreTrainedTokenizerFast
    fast = factory(tokenizer_object=tokenizer, unk_token="w0", bos_token="w0")
    if masked:
        fast.mask_token = "w1"
    fast.add_bos_token = True
    return fast


def random_ids(shape: tuple[int, ...], seed: int = 0) -> Any:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, VOCABULARY, shape))


def write_text(path: Path, tokens: int, seed: int = 0) -> Path:
    """Writes `tokens` random words."""
    words = random_ids((tokens,), seed).tolist()
    path.write_text(" ".join(f"w{i}" for i in words), "utf-8")
    return path


def one_shot(
    model: LoadedModel, text: Path | None, recipe: LearnRecipe, progress: Any = None
) -> Masks:
    """The masks of a one-shot method, at the recipe's sparsity."""
    sources = [] if text is None else [text]
    (candidates,) = rank_tiles(model, sources, [recipe], progress)
    return candidates.cut(recipe.sparsity[0])


def short_recipe(**options: Any) -> LearnRecipe:
    """Four steps that learn tiles and patterns, with a checkpoint half way."""
    base: dict[str, Any] = {
        "method": "patch-joint",
        "tile": "16x16",
        "samples": 2,
        "window": 16,
        "steps": 4,
        "holdout": 2,
        "checkpoint_every": 2,
    }
    return LearnRecipe(**{**base, **options})
