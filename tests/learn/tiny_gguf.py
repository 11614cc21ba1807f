"""A GGUF file so small that tests and fuzzing can write it."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tests.learn.tiny import VOCABULARY


def write_gguf(path: Path, rng: np.random.Generator) -> dict[str, Any]:
    """Writes a llama of one layer in F32; returns its tensors by their GGUF names."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(172)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(5000.0)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"w{i}" for i in range(VOCABULARY)])
    writer.add_token_scores([0.0] * VOCABULARY)
    writer.add_token_types([1] * VOCABULARY)
    writer.add_token_merges([])
    shapes = {
        "token_embd": (VOCABULARY, 64),
        "blk.0.attn_norm": (64,),
        "blk.0.attn_q": (64, 64),
        "blk.0.attn_k": (32, 64),
        "blk.0.attn_v": (32, 64),
        "blk.0.attn_output": (64, 64),
        "blk.0.ffn_norm": (64,),
        "blk.0.ffn_gate": (172, 64),
        "blk.0.ffn_up": (172, 64),
        "blk.0.ffn_down": (64, 172),
        "output_norm": (64,),
    }
    tensors = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    for name, tensor in tensors.items():
        writer.add_tensor(f"{name}.weight", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors
