"""The command lines that make the same files again, from what a report remembers."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from patch_compile.recipe import BuildRecipe, CompileRecipe, LearnRecipe, VerifyRecipe

__all__ = ["commands"]

Facts = Mapping[str, Any]

# What stands for a name that the report was not given.
_MODEL, _MASKS, _TEXT = "MODEL.onnx", "MASKS.json", "TEXT.txt"


def commands(report: Facts) -> list[str]:
    """Returns the command lines behind a report: masks, compile, engines, verification."""
    names = report.get("inputs", {})
    model, masks = names.get("model", _MODEL), names.get("masks", _MASKS)
    lines = [*_learn(report["made_by"], masks)]
    lines.append(
        [model, "--tiles", masks, "-o", "out", *_options(CompileRecipe(), report["recipe"])]
    )
    lines += [_build(engine) for engine in report["engines"]]
    lines.append(_verify(report.get("verification"), model, masks))
    return [shlex.join(["patch-compile", *map(str, line)]) for line in lines]


def _learn(made_by: Facts, masks: str) -> Iterator[list[str]]:
    recipe = made_by.get("recipe")
    if not isinstance(recipe, Mapping) or "model" not in made_by:
        return
    texts = [part for text in made_by.get("data", ()) for part in ("--data", str(text))]
    options = _options(LearnRecipe(), recipe)
    yield ["learn", str(made_by["model"]), *texts, *options, "-o", masks]


def _build(engine: Facts) -> list[str]:
    # Reports of the first release kept no recipe, and had one backend.
    known = {"engine": "tensorrt_rtx", "sm": engine["sm"], "sparse": engine["requested"]}
    options = _options(BuildRecipe(), engine.get("recipe", known))
    return ["build", "out/compiled.onnx", *options, "-o", "out"]


def _verify(found: Facts | None, model: str, masks: str) -> list[str]:
    start = ["verify", model, "out/compiled.onnx", "--tiles", masks]
    if found is None:
        return [*start, "--data", _TEXT]
    text = found.get("data")
    data = [] if text is None else ["--data", text]
    return [*start, *data, *_options(VerifyRecipe(), found.get("recipe", {}))]


def _options(defaults: Any, given: Facts) -> list[str]:
    """The options that differ from their defaults; a recipe's fields are its options."""
    found: list[str] = []
    for field in fields(defaults):
        default = getattr(defaults, field.name)
        value = given.get(field.name, default)
        value = tuple(value) if isinstance(value, list) else value
        if value != default:
            found += _option(field.name.replace("_", "-"), value)
    return found


def _option(name: str, value: Any) -> Sequence[str]:
    if isinstance(value, bool):
        return (f"--{name}" if value else f"--no-{name}",)
    if isinstance(value, tuple):
        return (f"--{name}", ",".join(str(part) for part in value))
    return (f"--{name}", str(value))
