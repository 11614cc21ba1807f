"""How channels are put in another order."""

from dataclasses import dataclass
from typing import Literal

from patch_compile.errors import RecipeError
from patch_compile.recipe.checks import check_kinds, within

__all__ = ["PermuteRecipe"]


@dataclass(frozen=True)
class PermuteRecipe:
    """How channels are put into the order in which 2:4 costs least.

    Attributes:
        axes: whose channels may move: `residual`, what every block reads and adds to, one
            order for the whole model; `mlp`, inside each MLP; `heads`, the values of each
            attention, within each head.
        rounds: in each, every group of four exchanges one channel.
        samples: windows of text that tell what a weight costs.
        window: tokens in a window.
        seed: of the order of the text, and of what is exchanged.
    """

    axes: tuple[Literal["residual", "mlp", "heads"], ...] = ("residual", "mlp", "heads")
    rounds: int = 40
    samples: int = 16
    window: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        check_kinds(self)
        if not self.axes:
            raise RecipeError("axes | is empty; expected some of residual, mlp, heads")
        if len({*self.axes}) < len(self.axes):
            raise RecipeError(f"axes | is {','.join(self.axes)}; expected each one once")
        within("rounds", self.rounds, 1, 1_000_000)
        within("samples", self.samples, 1, 1_000_000)
        # Of two tokens, the one that has a next sees itself alone, whatever its query.
        within("window", self.window, 3, 1_000_000)
        within("seed", self.seed, 0, 2**63 - 1)
