"""Axes of a model whose channels may be put in any order without changing what it computes.

An axis is what some weights make (their N) and others sum over (their K). Permuted alike on
both sides, the model computes what it did, up to the order of floating-point sums.

N: out features. K: in features.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from patch_compile._require import require
from patch_compile.errors import ModelError
from patch_compile.learn.bound import Bound, bound_weights, head_width
from patch_compile.learn.linears import Linear, find_linears

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

__all__ = ["Axis", "find_axes"]

Order = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Axis:
    """Channels that may change places within each of some parts.

    Attributes:
        kind: `residual`, `mlp` or `heads`.
        name: of the module whose inner axis it is; of the residual stream, the model's class.
        parts: how many parts it has: heads of keys and values, else 1.
        width: channels of a part.
        repeat: how often each part lies, one after the other, along the K of the readers:
            query heads that read the same values.
        readers: weights that sum over it, as their K.
        writers: weights that make it, as their N.
        first: where it begins along the N of the writers.
        others: tensors that have it as well, and as which dimension.
    """

    kind: str
    name: str
    parts: int
    width: int
    readers: tuple[Linear, ...]
    writers: tuple[Linear, ...]
    repeat: int = 1
    first: int = 0
    others: tuple[tuple["Tensor", int], ...] = ()

    def inner(self, order: Order) -> Order:
        """Returns where each of the readers' in features comes from, int64 (K,).

        Args:
            order: int64 (parts, width), each row a permutation of the channels of a part.
        """
        return _flat(np.repeat(order, self.repeat, axis=0))

    def outer(self, order: Order, size: int) -> Order:
        """Returns where each of a writer's out features comes from, int64 (size,)."""
        index = np.arange(size, dtype=np.int64)
        moved = self.first + _flat(order)
        index[self.first : self.first + len(moved)] = moved
        return index

    def apply(self, order: Order) -> None:
        """Moves the channels of every tensor that has the axis."""
        for reader in self.readers:
            _move(reader.matrix(reader.weight), 1, self.inner(order))
        for writer in self.writers:
            index = self.outer(order, writer.shape[0])
            _move(writer.matrix(writer.weight), 0, index)
            bias: Any = writer.module.bias
            if bias is not None:
                _move(bias, 0, index)
        for tensor, dimension in self.others:
            _move(tensor, dimension, _flat(order))


def _flat(order: Order) -> Order:
    parts, width = order.shape
    starts = width * np.arange(parts, dtype=np.int64)
    flat: Order = (order + starts[:, None]).ravel()
    return flat


def _move(tensor: "Tensor", dimension: int, index: Order) -> None:
    torch = require("torch", "learn")
    with torch.no_grad():
        tensor.copy_(tensor.index_select(dimension, torch.from_numpy(index)))


def find_axes(model: "PreTrainedModel", kinds: Sequence[str]) -> list[Axis]:
    """Finds the axes of these kinds, the residual stream first.

    Args:
        model: a language model.
        kinds: of `residual`, what all blocks read and add to; `mlp`, the inner axis of each
            MLP; `heads`, the values of each attention, within each head.

    Raises:
        ModelError: if the model has no axis of a kind, or one that groups of four do not fill,
            or may have weights on it that are not known.
    """
    linears = find_linears(model)
    found: list[Axis] = []
    if "residual" in kinds:
        found.append(_Residual(model, linears).axis())
    if "mlp" in kinds:
        found += [_mlp(bound, linears) for bound in bound_weights(model, "mlp")]
    if "heads" in kinds:
        bounds = bound_weights(model, "heads")
        found += [_heads(bound, linears, head_width(model, bound)) for bound in bounds]
    for axis in found:
        if axis.width % 4:
            raise ModelError(
                f"model | has {axis.width} channels in a part of '{axis.name}'; expected a "
                f"multiple of 4, as groups have; leave '{axis.kind}' out"
            )
    return found


def _mlp(bound: Bound, linears: Mapping[str, Linear]) -> Axis:
    reader = linears[bound.columns]
    writers = tuple(linears[name] for name in bound.rows)
    return Axis("mlp", bound.module, 1, reader.shape[1], (reader,), writers)


def _heads(bound: Bound, linears: Mapping[str, Linear], width: int) -> Axis:
    """Queries and keys stay: what is summed over them is turned by their positions."""
    reader, values = linears[bound.columns], linears[bound.rows[-1]]
    size = values.shape[0] // bound.fused
    parts, repeat = size // width, reader.shape[1] // size
    if parts * width != size or repeat * size != reader.shape[1]:
        raise ModelError(
            f"weight '{bound.columns}' | has {reader.shape[1]} in features for {size} of "
            f"values, in heads of {width}; expected whole heads; leave 'heads' out"
        )
    first = size * (bound.fused - 1)
    return Axis("heads", bound.module, parts, width, (reader,), (values,), repeat, first)


class _Residual:
    """Tells of every tensor of a model whether the residual stream lies on it, and how."""

    def __init__(self, model: "PreTrainedModel", linears: Mapping[str, Linear]) -> None:
        self._model = model
        ends: Any = model
        self._head = ends.get_output_embeddings()
        self._width = int(ends.get_input_embeddings().weight.shape[1])
        attentions = bound_weights(model, "heads", "residual")
        bounds = [*attentions, *bound_weights(model, "mlp", "residual")]
        self._inside = tuple(f"{bound.module}." for bound in attentions)
        self._readers = tuple(linears[name] for bound in bounds for name in bound.rows)
        self._writers = tuple(linears[bound.columns] for bound in bounds)

    def axis(self) -> Axis:
        """Returns the axis.

        Raises:
            ModelError: if a tensor is not known, or has not the stream's width.
        """
        wide = {reader.shape[1] for reader in self._readers}
        wide |= {writer.shape[0] for writer in self._writers}
        if wide != {self._width}:
            raise ModelError(
                f"model | reads and writes {sorted(wide)} channels where its embeddings have "
                f"{self._width}; expected a residual stream of one width; leave 'residual' out"
            )
        name, others = type(self._model).__name__, tuple(self._others())
        args = ("residual", name, 1, self._width, self._readers, self._writers)
        return Axis(*args, others=others)

    def _others(self) -> Iterator[tuple["Tensor", int]]:
        """Everything but the blocks' linears: embeddings, head and norms."""
        nn = require("torch.nn", "learn")
        known = {id(linear.module) for linear in (*self._readers, *self._writers)}
        seen: set[int] = set()
        for path, module in self._model.named_modules():
            for name, tensor in module.named_parameters(recurse=False):
                if id(module) in known or id(tensor) in seen:
                    continue
                seen.add(id(tensor))
                if path.startswith(self._inside):
                    self._check_within_a_head(f"{path}.{name}", tensor)
                elif isinstance(module, nn.Embedding) or module is self._head:
                    if name == "weight":
                        yield self._on_stream(f"{path}.{name}", tensor, 1)
                else:
                    yield self._on_stream(f"{path}.{name}", tensor, 0)

    def _on_stream(self, name: str, tensor: "Tensor", dimension: int) -> tuple["Tensor", int]:
        shape = tuple(tensor.shape)
        if len(shape) != dimension + 1 or shape[dimension] != self._width:
            raise ModelError(
                f"weight '{name}' | is of shape {shape}, and what it does to the residual "
                f"stream of {self._width} channels is not known; leave 'residual' out"
            )
        return tensor, dimension

    def _check_within_a_head(self, name: str, tensor: "Tensor") -> None:
        """A norm of queries or keys knows nothing of the stream."""
        if tensor.ndim != 1 or not name.endswith(("q_norm.weight", "k_norm.weight")):
            raise ModelError(
                f"weight '{name}' | is not known, and may see the residual stream; leave "
                "'residual' out"
            )
