"""What a plan costs: the one question that a planner asks of a target.

N: out features. K: in features. Costs of one planner share a unit; they add up.
"""

from dataclasses import dataclass
from typing import Protocol

from patch_compile.tiles.plan import Piece

__all__ = ["Cost", "MultiplyAdds"]

Pieces = tuple[Piece, ...]


class Cost(Protocol):
    """Prices of a graph's operations, for the tokens that a target has in mind."""

    @property
    def unit(self) -> str:
        """What is saved, in words that follow `saves 5 % of`."""
        ...

    def refusal(self, shape: tuple[int, int], pieces: Pieces) -> str:
        """Says why these pieces save too little, in words that follow a bar; or nothing."""
        ...

    def product(self, n: int, k: int, *, sparse24: bool) -> float:
        """Returns the price of `X @ W` with W (K, N), dense or 2:4."""
        ...

    def moved(self, features: int) -> float:
        """Returns the price of copying `features` a token: a Concat, Gather, Slice."""
        ...

    def added(self, features: int) -> float:
        """Returns the price of one Add of two tensors of `features` a token."""
        ...


@dataclass(frozen=True)
class MultiplyAdds:
    """Multiply-adds a token, a 2:4 product half of them; moving and adding is free."""

    unit: str = "the multiply-adds"

    def refusal(self, shape: tuple[int, int], pieces: Pieces) -> str:
        """Returns nothing: the share that is saved says it all."""
        del shape, pieces
        return ""

    def product(self, n: int, k: int, *, sparse24: bool) -> float:
        """Returns n k, halved if 2:4."""
        return n * k * (0.5 if sparse24 else 1.0)

    def moved(self, features: int) -> float:
        """Returns 0."""
        return 0.0 * features

    def added(self, features: int) -> float:
        """Returns 0."""
        return 0.0 * features
