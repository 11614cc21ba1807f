"""Frozen weights that are spread over the processes: each keeps its part of every weight.

FSDP2 gathers a block's weights for the passes that read them, and frees them again. Gates are
left out of it: their logits, Adam and checkpoints are the same, and whole, in every process.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import Parameter
from transformers import PreTrainedModel

from patch_compile.errors import RecipeError
from patch_compile.learn.training.gate import Gate, parameters_of
from patch_compile.learn.training.masked import blocks_of

__all__ = ["average_gradients", "check_shardable", "sharded"]


def check_shardable(model: PreTrainedModel) -> None:
    """Checks that a model's weights can be spread block by block.

    Raises:
        RecipeError: if it has no blocks, a weight belongs to two of them, or to one and to
            the rest of the model, or its memory has gaps.
    """
    blocks = blocks_of(model)
    if not blocks:
        raise _unfit(f"{type(model).__name__} has no blocks that are known")
    owners: dict[Parameter, int] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        # The rest of the model is as one more block.
        owner = next((i for i, block in enumerate(blocks) if name.startswith(f"{block}.")), -1)
        if owners.setdefault(parameter, owner) != owner:
            raise _unfit(f"'{name}' is also a weight of another block")
        if not parameter.is_contiguous():
            raise _unfit(f"'{name}' is not contiguous in memory")


def _unfit(why: str) -> RecipeError:
    return RecipeError(f"shard | is 'full', and {why}; leave --shard out")


@contextmanager
def sharded(
    model: PreTrainedModel, gates: Mapping[str, Gate], device: torch.device
) -> Iterator[nn.Module]:
    """Spreads a model's frozen weights over all processes; all is as before afterwards.

    The body uses what is yielded, a tree of modules of its own around the same gates; the
    model itself has no weights meanwhile, and none after an error, when processes no longer
    answer each other.

    Args:
        model: frozen, gates in it; the same in every process.
        gates: of the model; those of the first process count.
        device: of this process.

    Yields:
        The model to run, whose parameters are DTensors but for those of the gates and
        scalars, which cannot be cut.
    """
    home = model.device
    whole = {*parameters_of(gates).values(), *(p for p in model.parameters() if p.ndim == 0)}
    _place(gates, whole, device)
    parts = _twin(model, gates)
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    # A block that is within another goes first.
    for path in (*reversed(blocks_of(parts)), ""):
        module = parts.get_submodule(path)
        weights = [p for p in module.parameters() if not isinstance(p, DTensor)]
        # The rest of the model is read at both ends of a pass: it stays until both are done.
        fully_shard(module, mesh=mesh, reshard_after_forward=path != "", ignored_params=whole)
        # Before the next block comes to the device.
        for weight in {*weights} - whole:
            weight.data = weight.new_empty(0)
    yield parts
    parts.reshard()
    for name, parameter in model.named_parameters():
        if parameter not in whole:
            parameter.data = parts.get_parameter(name).full_tensor().detach().to(home)


def _place(gates: Mapping[str, Gate], whole: Collection[Parameter], device: Any) -> None:
    """Puts what is not spread on the device; what gates start from is the first process's."""
    for parameter in whole:
        parameter.data = parameter.data.to(device)
    for gate in gates.values():
        gate.to(device)
        # Processes may have added up their statistics in other orders.
        for tensor in (*gate.parameters(), *gate.buffers()):
            distributed.broadcast(tensor.detach(), src=0)


def _twin(model: nn.Module, gates: Mapping[str, Gate]) -> Any:
    """Copies the tree of modules around the same parameters and gates.

    FSDP2 changes modules for good: the model's own stay as they are.
    """
    shared = (*model.parameters(), *gates.values())
    return deepcopy(model, {id(one): one for one in shared})


def average_gradients(parameters: Sequence[Tensor]) -> None:
    """Gives every process the mean of all processes' gradients; in place.

    Args:
        parameters: the same, in the same order, in every process.
    """
    for parameter in parameters:
        if parameter.grad is None:
            # The others may have one, and wait for this process's.
            parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    for work in [distributed.all_reduce(grad, async_op=True) for grad in gradients]:
        assert work is not None
        work.wait()
    for gradient in gradients:
        gradient.div_(distributed.get_world_size())
