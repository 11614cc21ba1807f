"""Small models as torch's two exporters write them; this module needs torch."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)
from transformers.pytorch_utils import Conv1D


@dataclass(frozen=True)
class Exported:
    """A graph and the module it came from."""

    path: Path
    module: nn.Module

    def linears(self) -> dict[str, NDArray[np.float32]]:
        """The weights (N, K) of the layers' linears, by parameter name."""
        found = {}
        for name, child in self.module.named_modules():
            if isinstance(child, nn.Linear | Conv1D) and (".layers." in name or ".h." in name):
                weight = child.weight.detach()
                found[f"{name}.weight"] = self._turned(name, weight).numpy()
        return found

    def _turned(self, name: str, weight: Tensor) -> Tensor:
        """GPT-2's Conv1D holds (K, N); turning is its own inverse."""
        layer = self.module.get_submodule(name.removesuffix(".weight"))
        return weight.T.contiguous() if isinstance(layer, Conv1D) else weight

    def masked(self, keeps: dict[str, NDArray[np.bool_]], *inputs: NDArray[Any]) -> Any:
        """The module's output when it keeps only these weights; the module stays as it was."""
        state = self.module.state_dict()
        masked = {
            name: state[name] * self._turned(name, torch.from_numpy(keep))
            for name, keep in keeps.items()
        }
        tensors = tuple(torch.from_numpy(array) for array in inputs)
        with torch.no_grad():
            output: Any = torch.func.functional_call(self.module, masked, tensors)
        return (output if isinstance(output, Tensor) else output.logits).numpy()


class Attention(nn.Module):
    """Two projections that a mask can bind to, without the attention between them."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(32, 48, bias=False)
        self.o_proj = nn.Linear(48, 32)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.o_proj(torch.tanh(self.q_proj(x)))
        return out


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up_proj = nn.Linear(32, 64, bias=False)
        self.down_proj = nn.Linear(64, 32, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(torch.relu(self.up_proj(x)))
        return out


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn = Attention()
        self.mlp = Mlp()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(x)
        out: Tensor = x + self.mlp(x)
        return out


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(), Layer()])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class Model(nn.Module):
    """The names of a language model, small enough for the TorchScript exporter."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Body()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(x)
        return out


def export_torchscript(path: Path) -> Exported:
    """What optimum calls: initializers come out as `onnx::MatMul_<number>`."""
    torch.manual_seed(0)
    module = Model().eval()
    with warnings.catch_warnings():
        # This exporter is deprecated; optimum still calls it.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (torch.zeros(1, 3, 32),),
            path,
            dynamo=False,
            opset_version=18,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes={"x": {0: "batch", 1: "sequence"}},
        )
    return Exported(path, module)


def export_dynamo(path: Path) -> Exported:
    """A random LLaMA with grouped queries; initializers come out as `val_<number>`."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=128,
        max_position_embeddings=64,
    )
    return _dynamo(LlamaForCausalLM(config), path)


def export_gpt2(path: Path) -> Exported:
    """Conv1D layers: Gemm on two axes, and Reshapes around the activation."""
    torch.manual_seed(0)
    config = GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=128, n_positions=64)
    return _dynamo(GPT2LMHeadModel(config), path)


def export_opt(path: Path) -> Exported:
    """Biases everywhere; the two products of an MLP are Gemm."""
    torch.manual_seed(0)
    config = OPTConfig(
        hidden_size=64,
        ffn_dim=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=128,
        max_position_embeddings=64,
        word_embed_proj_dim=64,
    )
    return _dynamo(OPTForCausalLM(config), path)


def _dynamo(module: Any, path: Path) -> Exported:
    module.train(False)
    with warnings.catch_warnings():
        # Deprecations inside torch are not ours to mend.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            # Two rows: an axis of one is taken for a constant.
            kwargs={"input_ids": torch.zeros(2, 8, dtype=torch.long), "use_cache": False},
            dynamo=True,
            opset_version=20,
            dynamic_shapes={"input_ids": {0: "batch", 1: "sequence"}, "use_cache": None},
            verbose=False,
        )
        assert program is not None
        program.save(path)
    return Exported(path, module)
