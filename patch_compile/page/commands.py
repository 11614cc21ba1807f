"""The command lines that make the same files again, from what a report remembers."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from patch_compile.page.formats import known
from patch_compile.recipe import (
    BuildRecipe,
    CompileRecipe,
    LearnRecipe,
    QuantizeRecipe,
    VerifyRecipe,
)

__all__ = ["NEAR", "commands", "promise"]

Facts = Mapping[str, Any]

# What stands for a name that the report was not given.
_MODEL, _MASKS, _TEXT, _CHECKPOINT = "MODEL.onnx", "MASKS.json", "TEXT.txt", "CHECKPOINT"
_LEARNED = "learned"

# A tile has a size: the masks of a sparsity that was asked for are as near to it.
NEAR = 0.005


def commands(report: Facts) -> list[str]:
    """Returns the command lines behind a report: masks, compile, engines, verification."""
    names = report.get("inputs", {})
    model, masks = names.get("model", _MODEL), names.get("masks", _MASKS)
    lines = [*_learn(report["made_by"], masks), _compile(report, model, masks)]
    lines += [_build(engine) for engine in report["engines"]]
    lines.append(_verify(report.get("verification"), model, masks))
    return [shlex.join(["patch-compile", *map(str, line)]) for line in lines]


def _learn(made_by: Facts, masks: str) -> Iterator[list[str]]:
    """How masks were learned, and cut if they are none of those that were asked for."""
    recipe = made_by.get("recipe")
    if not isinstance(recipe, Mapping) or "model" not in made_by:
        return
    texts = [part for text in made_by.get("data", ()) for part in ("--data", str(text))]
    options = _options(LearnRecipe(), recipe)
    if recipe.get("update"):
        options += ["--checkpoint", _CHECKPOINT]
    start = ["learn", str(made_by["model"]), *texts, *options, "-o"]
    wish = _wish(made_by, recipe)
    wishes: Sequence[float] = recipe.get("sparsity") or ()
    ending = f"-{wish:g}.json" if isinstance(wish, float) else ".json"
    if wish is not None and len(wishes) < 2:
        yield [*start, masks]
    elif wish is not None and masks.endswith(ending):
        # Each of several has its number in its name.
        yield [*start, f"{masks.removesuffix(ending)}.json"]
    else:
        learned = f"{_LEARNED}-{max(wishes):g}" if len(wishes) > 1 else _LEARNED
        yield [*start, f"{_LEARNED}.json"]
        yield ["cut", f"{learned}.json", *_cut(made_by), "-o", masks]


def promise(made_by: Facts) -> Facts | None:
    """The predicted time asked of masks; a compile may note a budget of its own there."""
    budget = made_by.get("budget")
    return budget if isinstance(budget, Mapping) and "asked" in budget else None


def _wish(made_by: Facts, recipe: Facts) -> float | str | None:
    """What learning was asked that these masks are; None of masks that were cut since."""
    budget, made = promise(made_by), made_by.get("sparsity")
    if recipe.get("budget") or budget:
        return recipe.get("budget") if budget else None
    if not known(made):
        return recipe["sparsity"][0] if len(recipe.get("sparsity") or ()) == 1 else None
    near = [wish for wish in recipe.get("sparsity") or () if abs(wish - made) < NEAR]
    return float(near[0]) if near else None


def _cut(made_by: Facts) -> list[str]:
    budget = promise(made_by)
    if budget is None:
        return ["--sparsity", f"{made_by.get('sparsity', 0.0):.6g}"]
    tokens = ",".join(map(str, budget["tokens"]))
    return ["--budget", f"time:{budget['asked']:g}x@{budget['target']}:{tokens}"]


def _compile(report: Facts, model: str, masks: str) -> list[str]:
    options = _options(CompileRecipe(), report["recipe"])
    quantized = report.get("quantized")
    if quantized is not None:
        # Older reports name the type alone.
        asked = quantized.get("recipe", {"quantize": quantized["type"]})
        options += _options(QuantizeRecipe(), asked)
        options += ["--data", quantized.get("data", _TEXT)]
    return [model, "--tiles", masks, "-o", "out", *options]


def _build(engine: Facts) -> list[str]:
    # Reports of the first release kept no recipe, and had one backend.
    first = {"engine": "tensorrt_rtx", "sm": engine["sm"], "sparse": engine["requested"]}
    recipe = dict(engine.get("recipe", first))
    flags = recipe.pop("flags", ())
    options = _options(BuildRecipe(), recipe)
    return [
        *("build", "out/compiled.onnx", *options, "-o", "out"),
        *(("--", *flags) if flags else ()),
    ]


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
    if isinstance(value, tuple) and any(isinstance(part, str) for part in value):
        # A comma may be part of a pattern.
        return tuple(word for part in value for word in (f"--{name}", part))
    if isinstance(value, tuple):
        return (f"--{name}", ",".join(str(part) for part in value))
    return (f"--{name}", str(value))
