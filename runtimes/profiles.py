"""Ranges of the dynamic axes of a model, as engine builders ask for them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["NetworkInput", "Range", "only", "profile_shapes", "run_shapes", "symbol_sizes"]

Range = tuple[int, int, int]


@dataclass(frozen=True)
class NetworkInput:
    """An input as a parser reports it.

    Attributes:
        name: of the input.
        dims: one size an axis; -1 where it is dynamic.
        symbols: one name an axis; None where it has none.
    """

    name: str
    dims: tuple[int, ...]
    symbols: tuple[str | None, ...]


def profile_shapes(
    inputs: Iterable[NetworkInput], batch: Range, sequence: Range
) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Returns least, best and most shape of every input that has a dynamic axis.

    A symbol has one range wherever it turns up: that of its first appearance.

    Args:
        inputs: in graph order.
        batch: least, best and most of a dynamic axis 0.
        sequence: least, best and most of any other dynamic axis.
    """
    symbols: dict[str, Range] = {}
    shapes = {}
    for item in inputs:
        ranges = [
            _range(size, symbol, sequence if axis else batch, symbols)
            for axis, (size, symbol) in enumerate(zip(item.dims, item.symbols, strict=True))
        ]
        if -1 in item.dims:
            shapes[item.name] = tuple(tuple(r[point] for r in ranges) for point in range(3))
    return shapes


def only(size: int) -> Range:
    """Returns the range of one size."""
    return size, size, size


def run_shapes(
    inputs: Sequence[NetworkInput], batch: int, tokens: int
) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every input in a run, fixed ones too, by name.

    Args:
        inputs: in graph order.
        batch: size of a dynamic axis 0.
        tokens: size of any other dynamic axis.
    """
    shapes = profile_shapes(inputs, only(batch), only(tokens))
    return {item.name: shapes.get(item.name, (item.dims,))[0] for item in inputs}


def _range(size: int, symbol: str | None, guess: Range, symbols: dict[str, Range]) -> Range:
    if size != -1:
        return size, size, size
    return guess if symbol is None else symbols.setdefault(symbol, guess)


def symbol_sizes(
    inputs: Iterable[NetworkInput], shapes: Mapping[str, tuple[tuple[int, ...], ...]]
) -> dict[str, int]:
    """Returns the size of every named dynamic axis at the best point, where kernels are timed.

    Args:
        inputs: in graph order.
        shapes: least, best and most shape by input name, as `profile_shapes` gives them.
    """
    return {
        symbol: shapes[item.name][1][axis]
        for item in inputs
        for axis, symbol in enumerate(item.symbols)
        if symbol is not None and item.name in shapes
    }
