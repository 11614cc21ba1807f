from typing import Any

import pytest

from patch_compile.errors import RecipeError
from patch_compile.evaluation.settings import EvalRecipe


def test_the_defaults_take_all_of_the_text_without_overlap() -> None:
    recipe = EvalRecipe()
    assert (recipe.tokens, recipe.window, recipe.stride, recipe.limit) == (
        None,
        512,
        None,
        None,
    )


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("window", 1),
        ("tokens", 511),
        ("stride", 0),
        ("stride", 513),
        ("limit", 0),
        ("tasks", ("piqa", "")),
        ("tasks", "piqa"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(option: str, value: Any) -> None:
    with pytest.raises(RecipeError, match=rf"^{option} \| (is|are) "):
        EvalRecipe(**{option: value})
