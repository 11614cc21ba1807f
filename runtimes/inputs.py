"""Inputs for models we know nothing about, made from the names and shapes they declare.

B: batch. T: tokens of the sequence. Caches (`past_*`) start empty, so the mask over past and
sequence is (B, T) too.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patch_compile.errors import ModelError
from patch_compile.runtimes.onnxruntime import Argument, Session

__all__ = ["Shape", "input_shapes", "random_inputs", "token_inputs"]

_DTYPES: dict[str, type[np.generic]] = {
    "tensor(float16)": np.float16,
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}
# Below the vocabulary of every tokenizer in use.
_TOKENS = 100

Shape = tuple[int, ...]


def random_inputs(
    session: Session, *, seed: int = 0, batch: int = 1, sequence: int = 8
) -> dict[str, NDArray[Any]]:
    """Makes one feed for every input of a model.

    Floats are standard normal; integers lie in [0, 100), which every token table holds;
    masks are ones, positions count up, token types and empty caches are zeros.

    Args:
        session: whose inputs to fill.
        seed: of all random values.
        batch: B, for dynamic axes named so, and for the first axis if nameless.
        sequence: T, for every other dynamic axis.

    Raises:
        ModelError: if an input is no tensor of a type that numpy has.
    """
    rng = np.random.default_rng(seed)
    arguments = session.get_inputs()
    shapes = input_shapes(arguments, batch=batch, sequence=sequence)
    return {a.name: _filled(a, shapes[a.name], rng) for a in arguments}


def input_shapes(
    arguments: Sequence[Argument], *, batch: int, sequence: int
) -> dict[str, Shape]:
    """Returns a shape for every input, by name; see `random_inputs`."""
    sizes: dict[str, int] = {}
    return {a.name: _shape(a, batch, sequence, sizes) for a in arguments}


def token_inputs(session: Session, tokens: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """Makes the feeds of a language model for given tokens.

    Args:
        session: a model with an input `input_ids`, and perhaps `attention_mask`,
            `position_ids`, `token_type_ids` and `past_*`.
        tokens: int64 (B, T).

    Raises:
        ModelError: if `input_ids` is missing, or there is an input of another name.
    """
    arguments = session.get_inputs()
    strange = [a.name for a in arguments if a.name != "input_ids" and _maker(a.name) is None]
    if strange or all(a.name != "input_ids" for a in arguments):
        raise ModelError(
            f"model inputs | are {', '.join(a.name for a in arguments)}; expected input_ids "
            "with attention_mask, position_ids, token_type_ids and past_* at most"
        )
    batch, sequence = tokens.shape
    feeds = random_inputs(session, batch=batch, sequence=sequence)
    feeds["input_ids"] = tokens.astype(feeds["input_ids"].dtype)
    return feeds


def _shape(argument: Argument, batch: int, sequence: int, sizes: dict[str, int]) -> Shape:
    shape = []
    for axis, size in enumerate(argument.shape):
        if isinstance(size, int):
            shape.append(size)
            continue
        guess = _size(argument.name, axis, size or "", batch, sequence)
        # A symbol has one size, wherever it turns up.
        shape.append(guess if size is None else sizes.setdefault(size, guess))
    return tuple(shape)


def _size(name: str, axis: int, symbol: str, batch: int, sequence: int) -> int:
    if "batch" in symbol:
        return batch
    if name.startswith("past") and axis > 0:
        return 0
    return batch if axis == 0 and "seq" not in symbol else sequence


def _filled(argument: Argument, shape: Shape, rng: np.random.Generator) -> NDArray[Any]:
    dtype = _DTYPES.get(argument.type)
    if dtype is None:
        raise ModelError(
            f"input '{argument.name}' | is {argument.type}; expected one of "
            f"{', '.join(_DTYPES)}; cast it in the model"
        )
    maker = _maker(argument.name)
    if maker is not None:
        return maker(shape).astype(dtype)
    if issubclass(dtype, np.floating):
        return rng.standard_normal(shape).astype(dtype)
    return rng.integers(0, _TOKENS, shape).astype(dtype)


def _maker(name: str) -> Callable[[Shape], NDArray[Any]] | None:
    """How inputs of known names are filled, whatever their type."""
    if name == "attention_mask":
        return np.ones
    if name == "position_ids":
        return _positions
    if name == "token_type_ids" or name.startswith("past"):
        return np.zeros
    return None


def _positions(shape: Shape) -> NDArray[Any]:
    return np.broadcast_to(np.arange(shape[-1]), shape)
