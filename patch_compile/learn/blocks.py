"""A model run block by block, so that one block after the other can be changed.

W: windows. T: tokens in a window. F: hidden features.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from patch_compile._require import require
from patch_compile.errors import ModelError
from patch_compile.learn.questions import uncached
from patch_compile.learn.readable import check_windows

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

__all__ = ["Block", "Chain", "chain"]


@dataclass(frozen=True, eq=False)
class Block:
    """A transformer block, with what it is called with beside the hidden states.

    Attributes:
        name: its path in the model.
        module: the block.
        arguments: by position, after the hidden states.
        options: by name.
    """

    name: str
    module: "nn.Module"
    arguments: tuple[Any, ...]
    options: Mapping[str, Any]

    def __call__(self, hidden: "Tensor") -> "Tensor":
        """Returns the hidden states after the block, (1, T, F), without a gradient."""
        with require("torch", "learn").no_grad():
            states: Tensor = _states(self.module(hidden, *self.arguments, **self.options))
        return states


@dataclass(frozen=True, eq=False)
class Chain:
    """The blocks of a model in order, and what the first of them reads.

    Attributes:
        blocks: each reads what the one before it gives.
        hidden: one (1, T, F) a window.
    """

    blocks: Sequence[Block]
    hidden: Sequence["Tensor"]


def chain(model: "PreTrainedModel", windows: NDArray[np.int64]) -> Chain:
    """Records how a model calls its blocks.

    Masks and positions are those of the first window: all windows are whole, of one length.

    Args:
        model: in evaluation mode.
        windows: int64 (W, T).

    Raises:
        ModelError: if the windows are none that the model reads, or it has no blocks, or does
            not simply run one after the other.
    """
    check_windows(model, windows)
    torch = require("torch", "learn")
    kind = require("transformers.modeling_layers", "learn").GradientCheckpointingLayer
    modules = {name: part for name, part in model.named_modules() if isinstance(part, kind)}
    if not modules:
        raise ModelError(_unfit(model, "has no blocks of a kind that is known"))
    record = _Record(next(iter(modules)))
    with torch.no_grad(), _noted(modules, record):
        for window in windows:
            ids = torch.from_numpy(window)[None].to(model.device)
            model(input_ids=ids, **uncached(model))
    if record.names != list(modules) * len(windows):
        raise ModelError(_unfit(model, "does not run each of its blocks once, in order"))
    again = record.hidden[-1]
    for block in record.blocks:
        again = block(again)
    # The same operations on the same numbers; of a window with other tokens than the first.
    if not torch.equal(again, record.last):
        raise ModelError(_unfit(model, "does more between its blocks than pass states on"))
    return Chain(record.blocks, record.hidden)


@dataclass
class _Record:
    """What was seen of a model's blocks.

    Attributes:
        first: name of the first block.
        names: of the blocks that ran, in order.
        blocks: as the first window calls them.
        hidden: what the first block reads, a window each.
        last: what was given last.
    """

    first: str
    names: list[str] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    hidden: list["Tensor"] = field(default_factory=list)
    last: Any = None

    def before(
        self, name: str, module: "nn.Module", arguments: tuple[Any, ...], options: Any
    ) -> None:
        """Notes a call."""
        self.names.append(name)
        rest = dict(options)
        hidden, *others = arguments or (rest.pop("hidden_states"),)
        if name == self.first:
            self.hidden.append(hidden)
        if len(self.hidden) == 1:
            self.blocks.append(Block(name, module, tuple(others), rest))

    def after(self, _module: "nn.Module", _arguments: Any, output: Any) -> None:
        """Notes what a call gave."""
        self.last = _states(output)


@contextmanager
def _noted(modules: Mapping[str, "nn.Module"], record: _Record) -> Iterator[None]:
    """Notes the calls of modules in the body."""
    handles = []
    for name, module in modules.items():
        before = partial(record.before, name)
        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(module.register_forward_hook(record.after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _states(output: Any) -> Any:
    return output[0] if isinstance(output, tuple) else output


def _unfit(model: "PreTrainedModel", what: str) -> str:
    return (
        f"model | is a {type(model).__name__}, which {what}; expected one that can be updated "
        "block by block, leave --update out"
    )
