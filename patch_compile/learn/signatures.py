"""What a graph takes and gives: how a model is called while torch traces it.

B: batch. T: tokens of the sequence. P: tokens of the past. H: key-value heads. D: features of
a head.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from patch_compile._require import require
from patch_compile.errors import ModelError
from patch_compile.learn._quiet import first_line
from patch_compile.learn.model import LoadedModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Signature", "name_axes", "plain", "with_past"]

# Two rows, and tokens and past of unlike lengths: torch takes an axis of one for a constant,
# and axes of one length for the same.
_BATCH, _TOKENS, _PAST = 2, 3, 5
# How torch writes the length of past and sequence together, and how we do.
_SUM, _TOTAL = "past_sequence + sequence", "total_sequence"

# A key and a value, float (B, H, P, D) each, for every layer.
Past = list[tuple[Any, Any]]


@dataclass(frozen=True)
class Signature:
    """The arguments of one traced call.

    Attributes:
        arguments: example tensors, by name.
        axes: the dynamic axes, in the same structure.
        inputs: names in the graph, in the order of the flattened arguments.
        outputs: names in the graph.
        prepared: the model is changed for the call inside this context.
    """

    arguments: Mapping[str, Any]
    axes: Mapping[str, Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    prepared: Callable[[], AbstractContextManager[None]]


def plain(model: LoadedModel) -> Signature:
    """Tokens in, logits out: `input_ids`, int64 (B, T), to `logits` (B, T, vocabulary)."""
    torch = require("torch", "learn")
    return Signature(
        {"input_ids": torch.arange(2 * 8).reshape(2, 8)},
        {"input_ids": _axes("batch", "sequence")},
        ("input_ids",),
        ("logits",),
        lambda: _without_cache(model.module),
    )


def with_past(model: LoadedModel) -> Signature:
    """A decoder that takes and gives its cache, under the names that optimum uses.

    Inputs are `input_ids` (B, T), `attention_mask` (B, P + T), `position_ids` (B, T) where the
    model has them, all int64, and `past_key_values.N.key` and `.value` (B, H, P, D). Outputs
    are `logits` (B, T, vocabulary), `present.N.key` and `present.N.value` (B, H, P + T, D).

    Raises:
        ModelError: if the model keeps no keys and values of every token in every layer.
    """
    torch = require("torch", "learn")
    past = _past(model)
    ids = torch.arange(_BATCH * _TOKENS).reshape(_BATCH, _TOKENS)
    ones = torch.ones(_BATCH, _PAST + _TOKENS, dtype=torch.int64)
    arguments = {"input_ids": ids, "attention_mask": ones}
    axes: dict[str, Any] = {
        "input_ids": _axes("batch", "sequence"),
        "attention_mask": _axes("batch", _TOTAL),
    }
    if "position_ids" in inspect.signature(type(model.module).forward).parameters:
        places = torch.arange(_PAST, _PAST + _TOKENS)
        arguments["position_ids"] = places.expand(_BATCH, _TOKENS)
        axes["position_ids"] = _axes("batch", "sequence")
    cache = _axes("batch", None, "past_sequence")
    parts = [f"{layer}.{part}" for layer in range(len(past)) for part in ("key", "value")]
    return Signature(
        {**arguments, "past": past},
        {**axes, "past": [(cache, cache)] * len(past)},
        (*arguments, *(f"past_key_values.{part}" for part in parts)),
        ("logits", *(f"present.{part}" for part in parts)),
        lambda: _taking_past(model.module),
    )


def name_axes(model: ir.Model) -> None:
    """Gives the sum of past and sequence, wherever a shape has it, one name."""
    values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    for value in values:
        for axis, size in enumerate(value.shape or ()):
            if isinstance(size, ir.SymbolicDim) and size.value == _SUM:
                assert value.shape is not None
                value.shape[axis] = ir.SymbolicDim(_TOTAL)


def _axes(*names: str | None) -> dict[int, Any]:
    torch = require("torch", "learn")
    return {i: torch.export.Dim(name) for i, name in enumerate(names) if name is not None}


def _past(model: LoadedModel) -> Past:
    """The cache of a call, which shows its shapes."""
    torch = require("torch", "learn")
    if model.mask_token is not None:
        raise _no_cache(model, "it is a masked language model")
    ids = torch.zeros(_BATCH, _PAST, dtype=torch.int64)
    try:
        with torch.no_grad():
            past = _called(model.module, [], input_ids=ids)[1]
    # What a model of another kind trips over is anybody's guess.
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise _no_cache(model, first_line(error)) from error
    sizes = {tuple(part.shape)[:3:2] for pair in past for part in pair if part is not None}
    if not past or sizes != {(_BATCH, _PAST)}:
        raise _no_cache(model, f"its cache holds (batch, tokens) = {sorted(sizes)}")
    return past


def _no_cache(model: LoadedModel, reason: str) -> ModelError:
    return ModelError(
        f"model '{model.name}' | keeps no keys and values of every token in every layer: "
        f"{reason}; expected a decoder of that kind; leave --with-past out"
    )


def _called(module: "PreTrainedModel", past: Past, **tensors: Any) -> tuple[Any, Past]:
    """Calls a model with this cache; returns the logits and the longer cache.

    A cache that knows the model's configuration would cut the keys of sliding windows; the
    plain one keeps them all, and the mask hides what lies outside of a window.
    """
    cache = require("transformers", "learn").DynamicCache()
    for layer, (key, value) in enumerate(past):
        cache.update(key, value, layer)
    forward = type(module).forward
    out = forward(module, **tensors, past_key_values=cache, use_cache=True, return_dict=True)
    return out.logits, [(layer.keys, layer.values) for layer in out.past_key_values.layers]


@contextmanager
def _taking_past(module: "PreTrainedModel") -> Iterator[None]:
    """Lets a model take and give its cache as plain tensors.

    A module around the model would do as well, but would stand in every parameter's name.
    """

    def forward(
        input_ids: Any, attention_mask: Any, past: Past, position_ids: Any = None
    ) -> tuple[Any, Past]:
        places = {} if position_ids is None else {"position_ids": position_ids}
        return _called(
            module, past, input_ids=input_ids, attention_mask=attention_mask, **places
        )

    object.__setattr__(module, "forward", forward)
    try:
        yield
    finally:
        del module.__dict__["forward"]


@contextmanager
def _without_cache(module: "PreTrainedModel") -> Iterator[None]:
    # As an argument, `use_cache` would count as an input, and torch then leaves the dynamic
    # axes without their names.
    before = module.config.use_cache
    module.config.use_cache = False
    try:
        yield
    finally:
        module.config.use_cache = before
