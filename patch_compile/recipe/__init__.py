"""Recipes: what the user asked for.

The fields are the options of the command line, the keys of the configuration file and the
arguments of the Python API; there is no second schema.
"""

from patch_compile.recipe.compiling import CastType, CompileRecipe
from patch_compile.recipe.generating import GenerateRecipe
from patch_compile.recipe.learning import LearnRecipe
from patch_compile.recipe.permuting import PermuteRecipe
from patch_compile.recipe.promise import promise_of
from patch_compile.recipe.running import (
    Baseline,
    BenchRecipe,
    BenchRuntime,
    BuildRecipe,
    CalibrateRecipe,
    ExportRecipe,
    QuantizeRecipe,
    VerifyRecipe,
)

__all__ = [
    "Baseline",
    "BenchRecipe",
    "BenchRuntime",
    "BuildRecipe",
    "CalibrateRecipe",
    "CastType",
    "CompileRecipe",
    "ExportRecipe",
    "GenerateRecipe",
    "LearnRecipe",
    "PermuteRecipe",
    "QuantizeRecipe",
    "VerifyRecipe",
    "promise_of",
]
