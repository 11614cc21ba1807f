"""How the processes that learn together were launched, and what that asks of them."""

import os
from collections.abc import Mapping
from dataclasses import replace

import torch
from accelerate import Accelerator
from accelerate.utils import parse_flag_from_env
from transformers import PreTrainedModel

from patch_compile.errors import RecipeError
from patch_compile.learn.training.masked import blocks_of
from patch_compile.recipe import LearnRecipe

__all__ = ["as_launched", "processes"]

# These cut the gates' logits up; checkpoints and masks are written of whole ones.
_CUTTING = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
}

# What `accelerate launch` may ask of FSDP: the one value that is kept to, and what to do about
# any other. What only loading, saving or FSDP1 reads asks for nothing here.
_FSDP: Mapping[str, tuple[str, str]] = {
    "FSDP_VERSION": ("2", "set fsdp_version to 2"),
    "FSDP_RESHARD_AFTER_FORWARD": ("true", "set fsdp_reshard_after_forward to true"),
    "FSDP_OFFLOAD_PARAMS": ("false", "set fsdp_offload_params to false"),
    "FSDP_ACTIVATION_CHECKPOINTING": (
        "false",
        "set fsdp_activation_checkpointing to false and give --recompute",
    ),
    "FSDP_AUTO_WRAP_POLICY": (
        "transformer_based_wrap",
        "set fsdp_auto_wrap_policy to TRANSFORMER_BASED_WRAP",
    ),
    "FSDP_IGNORED_MODULES": ("", "leave fsdp_ignored_modules out"),
}


def as_launched(recipe: LearnRecipe, model: PreTrainedModel) -> LearnRecipe:
    """Returns the recipe, with `shard` if `accelerate launch` was told to use FSDP.

    Accelerate forgets on a CPU what it was launched for, and spreads by DDP: the environment
    that it sets counts.

    Raises:
        RecipeError: if it was told what learning cannot do.
    """
    for flag, name in _CUTTING.items():
        if parse_flag_from_env(flag):
            raise RecipeError(
                f"processes | are spread by {name}, which learning cannot do; launch it with "
                "torchrun, or with `accelerate launch --multi_gpu`"
            )
    if not parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return recipe
    for variable, (kept, remedy) in _FSDP.items():
        # FSDP1 is what a launcher means that names no version.
        value = os.environ.get(variable, "1" if variable == "FSDP_VERSION" else kept)
        if value.lower() != kept:
            raise _unkept(variable, value, remedy)
    _check_wrapped(model)
    return replace(recipe, shard="full")


def _check_wrapped(model: PreTrainedModel) -> None:
    value = os.environ.get("FSDP_TRANSFORMER_CLS_TO_WRAP", "")
    blocks = {type(model.get_submodule(path)).__name__ for path in blocks_of(model)}
    if value and set(value.split(",")) != blocks:
        what = ",".join(sorted(blocks)) or "nothing"
        remedy = f"leave fsdp_transformer_layer_cls_to_wrap out, {what} is wrapped"
        raise _unkept("FSDP_TRANSFORMER_CLS_TO_WRAP", value, remedy)


def _unkept(variable: str, value: str, remedy: str) -> RecipeError:
    return RecipeError(
        f"processes | are launched with {variable}={value}, which learning cannot do; {remedy}"
    )


def processes(recipe: LearnRecipe) -> Accelerator:
    """Meets the other processes, if there are any.

    Args:
        recipe: as launched.

    Raises:
        RecipeError: if weights are to be spread over one process.
    """
    # `accelerate launch` may have a precision of its own: the recipe's counts.
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="no")
    if recipe.shard == "full" and accelerator.num_processes == 1:
        raise RecipeError(
            "shard | is 'full', and there is one process; launch several, as in `torchrun "
            "--standalone --nproc-per-node 2 -m patch_compile learn ...`, or leave it out"
        )
    return accelerator
