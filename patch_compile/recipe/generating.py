"""How text is generated."""

from dataclasses import dataclass

from patch_compile.errors import RecipeError
from patch_compile.recipe.checks import check_kinds, within

__all__ = ["GenerateRecipe"]


@dataclass(frozen=True)
class GenerateRecipe:
    """How a model's next tokens are chosen.

    All models of one call get the same random numbers, so that a difference is the models'.

    Attributes:
        max_new_tokens: tokens at most after each prompt.
        greedy: take the likeliest token each time; so it is unless one of the next three is
            given.
        temperature: draw, with logits divided by it; 1 where only the next two are given.
        top_k: draw among the likeliest so many alone.
        top_p: draw among the fewest tokens that have this share of the probability.
        seed: of what is drawn.
        chat: put each prompt, as a user's turn, into the chat template beside the tokenizer.
        ignore_end: go on past the token that ends a text, as a measurement wants.
    """

    max_new_tokens: int = 64
    greedy: bool = False
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    chat: bool = False
    ignore_end: bool = False

    def __post_init__(self) -> None:
        check_kinds(self)
        within("max-new-tokens", self.max_new_tokens, 1, 1_000_000)
        within("seed", self.seed, 0, 2**63 - 1)
        if self.temperature is not None:
            within("temperature", self.temperature, 1e-3, 1e3)
        if self.top_k is not None:
            within("top-k", self.top_k, 1, 1_000_000_000)
        if self.top_p is not None:
            within("top-p", self.top_p, 1e-6, 1.0)
        if self.greedy and self.draws:
            raise RecipeError(
                "greedy | takes the likeliest token, and temperature, top-k or top-p draw "
                "one; give one or the other"
            )

    @property
    def draws(self) -> bool:
        """Tokens are drawn, not just the likeliest taken."""
        return (self.temperature, self.top_k, self.top_p) != (None, None, None)
