"""Recipes: what the user asked for.

The fields are the options of the command line, the keys of the configuration file and the
arguments of the Python API; there is no second schema.
"""

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from patch_compile.errors import RecipeError

__all__ = [
    "BuildRecipe",
    "CompileRecipe",
    "ExportRecipe",
    "LearnRecipe",
    "VerifyRecipe",
]

Method = Literal["magnitude", "wanda"]
Selection = Literal["fisher", "error"]
FloatType = Literal["fp32", "fp16", "bf16"]
LoweringChoice = Literal["auto", "dense", "whole", "columns", "reduction", "cover"]


@dataclass(frozen=True)
class CompileRecipe:
    """How masks become pieces.

    Attributes:
        lowering: `auto` takes the cheapest; any other name forces that form wherever it
            leaves a 2:4 piece.
        restore: give weights that are computed in a dense piece their unpruned values; the
            default keeps the masked model exactly.
        min_gain: the least share of multiply-adds a cut must save, 0 to 1.
        tile: geometry for mask sources that store none (`infer`, `mask.npz`).
        include: globs or `re:` patterns of mask names to take; empty takes all.
        ignore: globs or `re:` patterns of mask names to leave alone.
        check_digests: refuse a weight that is not the one its mask was made for.
    """

    lowering: LoweringChoice = "auto"
    restore: bool = False
    min_gain: float = 0.05
    tile: str = "128x128"
    include: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    check_digests: bool = True

    def __post_init__(self) -> None:
        _check_kinds(self)
        _within("min-gain", self.min_gain, 0.0, 1.0)


@dataclass(frozen=True)
class LearnRecipe:
    """How masks are made.

    Attributes:
        method: what ranks the weights of a group of 4: |w|, or Wanda's |w| * ||x||.
        select: what ranks tiles: `fisher`, sum of g^2 w^2 over the weights that would go, or
            `error`, the sum of the method's own squared scores.
        tile: `RxC`, `band:R`, `column:C` or `weight`.
        sparsity: zeros over all weights of the pruned linears, 0 to 0.5.
        samples: calibration windows.
        window: tokens in a window.
        seed: of the choice of windows.
        include: globs or `re:` patterns of weights to prune; empty takes every linear.
        ignore: globs or `re:` patterns of weights to leave dense.
    """

    method: Method = "wanda"
    select: Selection = "fisher"
    tile: str = "128x128"
    sparsity: float = 0.25
    samples: int = 16
    window: int = 512
    seed: int = 0
    include: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_kinds(self)
        _within("sparsity", self.sparsity, 0.0, 0.5)
        _within("samples", self.samples, 1, 1_000_000)
        _within("window", self.window, 2, 1_000_000)


@dataclass(frozen=True)
class ExportRecipe:
    """How a model becomes ONNX.

    Attributes:
        dtype: element type of weights and activations.
        opset: of the default domain.
    """

    dtype: FloatType = "fp32"
    opset: int = 20

    def __post_init__(self) -> None:
        _check_kinds(self)


@dataclass(frozen=True)
class VerifyRecipe:
    """What counts as equal.

    Attributes:
        atol: largest absolute difference of any output element; None picks one from the
            element type: 1e-2 for fp32, 0.5 for fp16 and bf16 (logits reach 20 to 40).
        rtol: largest relative Frobenius error; None picks 1e-4, or 2e-2 for fp16 and bf16.
        tokens: tokens of text for the perplexity; outputs are compared on the first window.
        window: tokens in a window.
        seed: of random inputs, where no text is given.
    """

    atol: float | None = None
    rtol: float | None = None
    tokens: int = 2048
    window: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        _within("window", self.window, 2, 1_000_000)
        _within("tokens", self.tokens, self.window, 1_000_000_000)


@dataclass(frozen=True)
class BuildRecipe:
    """How an engine is built.

    Attributes:
        engine: the backend; `none` builds nothing.
        sm: GPU architectures, as in `86` for compute capability 8.6.
        sparse: request sparse kernels (a permission, not an order).
        batch: least, best and most for dynamic batch axes.
        sequence: least, best and most for other dynamic axes.
        timeout: seconds before a build is stopped.
    """

    engine: Literal["none", "tensorrt_rtx"] = "none"
    sm: tuple[int, ...] = (86,)
    sparse: bool = True
    batch: tuple[int, int, int] = (1, 1, 1)
    sequence: tuple[int, int, int] = (1, 512, 2048)
    timeout: float = 1800.0

    def __post_init__(self) -> None:
        _check_kinds(self)
        _within("timeout", self.timeout, 1e-3, 1e9)
        for name, profile in (("batch", self.batch), ("sequence", self.sequence)):
            if not 1 <= profile[0] <= profile[1] <= profile[2]:
                raise RecipeError(
                    f"{name} | is {profile}; expected least <= best <= most, all from 1"
                )


def _check_kinds(recipe: Any) -> None:
    """Checks words against their choices, and lists: a str is no list of patterns."""
    hints = get_type_hints(type(recipe))
    for field in fields(recipe):
        name, value, kind = field.name, getattr(recipe, field.name), hints[field.name]
        if get_origin(kind) is Literal and value not in get_args(kind):
            choices = ", ".join(map(str, get_args(kind)))
            raise RecipeError(f"{name} | is {value!r}; expected one of {choices}")
        if get_origin(kind) is tuple and not isinstance(value, tuple):
            raise RecipeError(f"{name} | is {value!r}; expected a tuple")


def _within(name: str, value: float, low: float, high: float) -> None:
    # Written so that NaN fails too.
    if not low <= value <= high:
        raise RecipeError(f"{name} | is {value}; expected a number from {low} to {high}")
