"""The reference of the recipes, from the dataclasses themselves."""

from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from inspect import getdoc
from typing import Any, get_type_hints

from docstring_parser import parse

import patch_compile
from scripts.docs.kinds import default_words, kind_words
from scripts.docs.verbs import takers

__all__ = ["recipes", "recipes_reference"]


def recipes() -> list[type]:
    """Every public recipe."""
    names = sorted(name for name in patch_compile.__all__ if name.endswith("Recipe"))
    return [getattr(patch_compile, name) for name in names]


def recipes_reference() -> str:
    """Returns Markdown: of each recipe its fields with type, default and meaning."""
    return "\n".join(_section(recipe) for recipe in recipes())


def _section(recipe: type) -> str:
    doc = parse(getdoc(recipe) or "")
    meanings = {entry.arg_name: entry.description for entry in doc.params}
    text = [f"## `{recipe.__name__}` {{ #{recipe.__name__.lower()} }}", ""]
    text += [doc.short_description or "", "", doc.long_description or "", ""]
    text += [f"Taken by {', '.join(_link(verb) for verb in takers(recipe))}.", ""]
    hints = get_type_hints(recipe)
    for field in fields(recipe):
        text += _entry(recipe, field, hints[field.name], meanings[field.name])
    return "\n".join(text)


def _link(verb: str) -> str:
    return f"[`{verb}`](cli.md#{verb})" if verb != "main" else "[the main job](cli.md#main)"


def _entry(recipe: type, field: Field[Any], hint: Any, meaning: str | None) -> Iterator[str]:
    place = f"{recipe.__name__.lower()}-{field.name.replace('_', '-')}"
    assert field.default is not MISSING
    about = f"{kind_words(hint)}; default {default_words(field.default)}"
    yield f'<span id="{place}"></span>`{field.name}` <small>{about}</small>'
    yield f":   {' '.join((meaning or '').split())}"
    yield ""
