"""Compile tile-wise 2:4-sparse ONNX models for TensorRT.

`compile_model` is the main job; `learn_masks` and `export_onnx` make its inputs, `verify` and
`build_engine` judge and use its output. Importing this package loads none of torch,
onnxruntime or tensorrt: each function loads what it needs when it is called.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from patch_compile.api import build_engine as build_engine
    from patch_compile.api import export_onnx as export_onnx
    from patch_compile.api import join_engine as join_engine
    from patch_compile.api import learn_candidates as learn_candidates
    from patch_compile.api import learn_masks as learn_masks
    from patch_compile.api import learn_masks_for as learn_masks_for
    from patch_compile.api import permute_channels as permute_channels
    from patch_compile.bench.measure import bench_models as bench_models
    from patch_compile.bench.results import BenchResult as BenchResult
    from patch_compile.calibration import calibrate as calibrate
    from patch_compile.compiler import Compiled as Compiled
    from patch_compile.compiler import Planned as Planned
    from patch_compile.compiler import compile_model as compile_model
    from patch_compile.compiler import plan_model as plan_model
    from patch_compile.errors import PatchCompileError as PatchCompileError
    from patch_compile.evaluation.evaluate import evaluate as evaluate
    from patch_compile.evaluation.settings import EvalRecipe as EvalRecipe
    from patch_compile.generation import Generated as Generated
    from patch_compile.generation import generate as generate
    from patch_compile.inspection import inspect_model as inspect_model
    from patch_compile.io.load_masks import load_masks as load_masks
    from patch_compile.io.masks_file import save_masks as save_masks
    from patch_compile.quantization import quantize_model as quantize_model
    from patch_compile.recipe.compiling import CompileRecipe as CompileRecipe
    from patch_compile.recipe.generating import GenerateRecipe as GenerateRecipe
    from patch_compile.recipe.learning import LearnRecipe as LearnRecipe
    from patch_compile.recipe.permuting import PermuteRecipe as PermuteRecipe
    from patch_compile.recipe.running import BenchRecipe as BenchRecipe
    from patch_compile.recipe.running import BuildRecipe as BuildRecipe
    from patch_compile.recipe.running import CalibrateRecipe as CalibrateRecipe
    from patch_compile.recipe.running import ExportRecipe as ExportRecipe
    from patch_compile.recipe.running import QuantizeRecipe as QuantizeRecipe
    from patch_compile.recipe.running import VerifyRecipe as VerifyRecipe
    from patch_compile.results import bundle_engines as bundle_engines
    from patch_compile.results import import_results as import_results
    from patch_compile.runtimes.engine_file import check_engine as check_engine
    from patch_compile.runtimes.ep_context import export_context as export_context
    from patch_compile.tiles.masks import Masks as Masks
    from patch_compile.verification import verify as verify
    from patch_compile.whatif import what_if as what_if

_HOMES = {
    "BenchRecipe": "recipe",
    "BenchResult": "bench.results",
    "BuildRecipe": "recipe",
    "CalibrateRecipe": "recipe",
    "CompileRecipe": "recipe",
    "Compiled": "compiler",
    "ExportRecipe": "recipe",
    "GenerateRecipe": "recipe",
    "Generated": "generation",
    "LearnRecipe": "recipe",
    "Masks": "tiles.masks",
    "PermuteRecipe": "recipe",
    "Planned": "compiler",
    "PatchCompileError": "errors",
    "QuantizeRecipe": "recipe",
    "VerifyRecipe": "recipe",
    "bench_models": "bench.measure",
    "build_engine": "api",
    "bundle_engines": "results",
    "calibrate": "calibration",
    "check_engine": "runtimes.engine_file",
    "compile_model": "compiler",
    "EvalRecipe": "evaluation.settings",
    "evaluate": "evaluation.evaluate",
    "export_context": "runtimes.ep_context",
    "export_onnx": "api",
    "generate": "generation",
    "import_results": "results",
    "inspect_model": "inspection",
    "join_engine": "api",
    "learn_candidates": "api",
    "learn_masks": "api",
    "learn_masks_for": "api",
    "load_masks": "io.load_masks",
    "permute_channels": "api",
    "plan_model": "compiler",
    "quantize_model": "quantization",
    "save_masks": "io.masks_file",
    "verify": "verification",
    "what_if": "whatif",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'patch_compile' has no attribute '{name}'")
    return getattr(import_module(f"patch_compile.{_HOMES[name]}"), name)
