"""The reference of the Python API: directives that mkdocstrings fills from docstrings."""

import inspect
from collections.abc import Mapping
from importlib import import_module

import patch_compile

__all__ = ["TYPES", "documented", "names_reference", "types_reference"]

# What public functions take, give and raise beside the names of the package itself; none
# named stands for all that a module offers.
TYPES: Mapping[str, tuple[str, ...]] = {
    "patch_compile.errors": (),
    "patch_compile.report": (),
    "patch_compile.tiles.plan": ("Plan", "WeightPlan", "GroupPlan", "Piece"),
    "patch_compile.tiles.weight_mask": ("WeightMask", "from_keep"),
    "patch_compile.tiles.geometry": (),
    "patch_compile.verification": ("Verification",),
    "patch_compile.results": ("Results", "ModelResult"),
    "patch_compile.inspection": ("Inspection", "WeightInspection"),
    "patch_compile.quantization": ("Quantized",),
    "patch_compile.evaluation.results": (),
    "patch_compile.learn.candidates": ("Candidates",),
    "patch_compile.learn.permute": ("Permuted", "Reordered"),
    "patch_compile.runtimes.engines": ("EngineResult",),
    "patch_compile.runtimes.evidence": (),
    "patch_compile.joining": ("Joined", "WeightJoin", "PieceJoin", "PieceSite"),
    "patch_compile.whatif": (),
    "patch_compile.targets.target": (),
}


def names_reference() -> str:
    """Returns Markdown for every name of `patch_compile.__all__`."""
    classes = [n for n in sorted(patch_compile.__all__) if inspect.isclass(_value(n))]
    functions = [n for n in sorted(patch_compile.__all__) if n not in classes]
    parts = ["## Functions", *(f"::: patch_compile.{name}" for name in functions)]
    parts += ["## Classes", *(f"::: patch_compile.{name}" for name in classes)]
    return "\n\n".join(parts)


def types_reference() -> str:
    """Returns Markdown for what `TYPES` names, module by module."""
    return "\n\n".join(_module(name) for name in TYPES)


def documented(module: str) -> list[str]:
    """Names of a module of `TYPES` that have an entry; the package's own have one already."""
    offered = import_module(module)
    own = {_value(name) for name in patch_compile.__all__}
    names = TYPES[module] or offered.__all__
    return [name for name in names if not _is_one(getattr(offered, name), own)]


def _is_one(value: object, own: set[object]) -> bool:
    return (inspect.isclass(value) or inspect.isfunction(value)) and value in own


def _module(name: str) -> str:
    summary = (import_module(name).__doc__ or "").partition("\n\n")[0]
    entries = [f"::: {name}.{entry}" for entry in documented(name)]
    return "\n\n".join([f"## `{name}`", summary, *entries])


def _value(name: str) -> object:
    return getattr(patch_compile, name)
