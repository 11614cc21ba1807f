"""Writes the tiny LLaMA that the graphs in this folder were exported from.

Run it to make them anew, then the exporters, each in an environment of its own:

    python tests/exports/make.py llama
    optimum-cli export onnx -m llama --task text-generation-with-past optimum
    python -m onnxruntime_genai.models.builder -i llama -o genai-fp32 -p fp32 -e cpu
    python -m onnxruntime_genai.models.builder -i llama -o genai-fp16 -p fp16 -e cuda

Those here are of optimum-onnx 0.1.0 (torch 2.13, transformers 4.57) and onnxruntime-genai
0.18.0 (transformers 5.23); their data files were put into the .onnx files.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

# `verify` without a text asks for tokens below 100.
VOCABULARY = 128


def main(folder: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "proj" in name:
                # As they are drawn, layers hardly add to what flows past them.
                parameter.mul_(12.0)
    model.save_pretrained(folder)
    path = folder / "config.json"
    facts: dict[str, Any] = json.loads(path.read_text("utf-8"))
    # transformers 4 reads no `rope_parameters`.
    path.write_text(json.dumps({**facts, "rope_theta": 10000.0}, indent=1), "utf-8")
    words = {f"w{i}": i for i in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment] # its stubs
    fast: Any = PreTrainedTokenizerFast
    fast(tokenizer_object=tokenizer, unk_token="w0").save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
