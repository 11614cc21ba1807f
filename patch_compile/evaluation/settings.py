"""The recipe of an evaluation."""

from dataclasses import dataclass

from patch_compile.errors import RecipeError
from patch_compile.recipe.checks import check_kinds, within

__all__ = ["EvalRecipe"]


@dataclass(frozen=True)
class EvalRecipe:
    """What is evaluated, and on how much of it.

    Attributes:
        tokens: first tokens of the text; by default all.
        window: tokens in a window.
        stride: tokens from one window's start to the next's; by default `window`, no
            overlap. With a smaller one, windows after the first count their last `stride`
            predictions.
        tasks: zero-shot tasks of lm-evaluation-harness, or of local files.
        limit: first questions of each task; by default all.
    """

    tokens: int | None = None
    window: int = 512
    stride: int | None = None
    tasks: tuple[str, ...] = ()
    limit: int | None = None

    def __post_init__(self) -> None:
        check_kinds(self)
        within("window", self.window, 2, 1_000_000)
        if self.tokens is not None:
            within("tokens", self.tokens, self.window, 1_000_000_000)
        if self.stride is not None:
            within("stride", self.stride, 1, self.window)
        if self.limit is not None:
            within("limit", self.limit, 1, 1_000_000_000)
        if "" in self.tasks:
            raise RecipeError(f"tasks | are {self.tasks}; expected names, as in piqa,arc_easy")
