"""What a run is called is what it runs: a batch and tokens by the shapes that models take."""

from functools import partial

import pytest

from patch_compile.errors import RecipeError
from patch_compile.runtimes.profiles import NetworkInput, run_shapes
from patch_compile.runtimes.sizes import check_sizes, sizes_of

IDS = NetworkInput("input_ids", (-1, -1), ("batch", "sequence"))
ONE = NetworkInput("input_ids", (1, -1), (None, "sequence"))
HIDDEN = NetworkInput("x", (1, 128, 48), (None,) * 3)
ROWS = NetworkInput("x", (-1, 48), ("rows", None))
MASK = NetworkInput("attention_mask", (-1, -1), ("batch", "total"))


@pytest.mark.parametrize(
    ("inputs", "asked", "runs"),
    [
        ([IDS, MASK], (16, 1), (16, 1)),
        ([MASK, IDS], (4, 128), (4, 128)),
        ([ONE], (1, 7), (1, 7)),
        ([ONE], (64, 7), (1, 7)),
        ([HIDDEN], (1, 128), (1, 128)),
        ([HIDDEN], (1, 1), (1, 128)),
        ([HIDDEN], (1, 48), (1, 128)),
        ([HIDDEN], (64, 128), (1, 128)),
        # Rows are tokens, whatever they are dealt out as.
        ([ROWS], (32, 1), (32, 1)),
        ([ROWS], (1, 512), (1, 1)),
        ([NetworkInput("x", (256, 48), (None, None))], (2, 128), (2, 128)),
        ([NetworkInput("step", (1,), (None,))], (1, 9), (1, 9)),
    ],
)
def test_sizes_are_those_of_the_shapes(
    inputs: list[NetworkInput], asked: tuple[int, int], runs: tuple[int, int]
) -> None:
    shapes = partial(run_shapes, inputs)
    assert sizes_of(shapes, *asked) == runs
    if asked == runs:
        check_sizes("model", shapes, *asked)
        return
    with pytest.raises(RecipeError, match=rf"runs {runs[1]} at batch {runs[0]}, by its fixed"):
        check_sizes("model", shapes, *asked)
