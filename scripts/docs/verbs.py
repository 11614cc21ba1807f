"""The reference of the command line, from the parser itself."""

from collections.abc import Iterator
from inspect import getdoc
from typing import Any, get_type_hints

from cyclopts import App, Parameter
from docstring_parser import parse

from patch_compile.cli.main import app
from scripts.docs.kinds import default_words, kind_words

__all__ = ["takers", "verb_names", "verbs_reference"]

# As `app` has it; a verb's own parser does not hand it down.
_DEFAULTS = Parameter(negative_iterable=())


def verb_names() -> list[str]:
    """The verbs in the order that `--help` lists them."""
    return sorted(name for name in app if not name.startswith("-"))


def verbs_reference() -> str:
    """Returns Markdown: the main job, every verb, and the options that all of them take."""
    parts = [_section("patch-compile", "main", app)]
    parts += [_section(f"patch-compile {name}", name, app[name]) for name in verb_names()]
    parts.append(_section("Options of every verb", "every", app.meta, usage=False))
    return "\n".join(parts)


def takers(recipe: type) -> list[str]:
    """The verbs whose options the recipe's fields are; `main` is the main job."""
    verbs = {"main": app, **{name: app[name] for name in verb_names()}}
    return [
        name
        for name, verb in verbs.items()
        if recipe in get_type_hints(verb.default_command).values()
    ]


def _section(title: str, anchor: str, verb: App, *, usage: bool = True) -> str:
    arguments = [a for a in _arguments(verb) if a.show]
    positional = [a for a in arguments if a.names and not a.names[0].startswith("-")]
    options = [a for a in arguments if a not in positional]
    needed = " ".join(f"{a.names[0]} {_metavar(a)}" for a in options if a.required)
    words = " ".join(a.names[0] for a in positional)
    line = " ".join(part for part in (title, words, needed, "[OPTIONS]") if part)
    heading = f"`{title}`" if usage else title
    text = [f"## {heading} {{ #{anchor} }}", ""]
    if usage:
        text += [f"```text\n{line}\n```", ""]
    text += [_help(verb), ""]
    text += [line for a in (*positional, *options) for line in _entry(anchor, a)]
    return "\n".join(text)


def _help(verb: App) -> str:
    doc = parse(getdoc(verb.default_command) or "")
    return f"{doc.short_description}\n\n{doc.long_description or ''}".strip()


def _arguments(verb: App) -> Iterator[Any]:
    yield from verb.assemble_argument_collection(
        default_parameter=_DEFAULTS, parse_docstring=True
    )


def _entry(anchor: str, argument: Any) -> Iterator[str]:
    names = ", ".join(f"`{name}`" for name in argument.names)
    place = f"{anchor}-{argument.names[0].strip('-').lower()}"
    meaning = " ".join(str(argument.parameter.help).split())
    yield f'<span id="{place}"></span>{names} <small>{_about(argument)}</small>'
    yield f":   {meaning}"
    yield ""


def _about(argument: Any) -> str:
    kind = kind_words(argument.hint)
    if argument.required:
        return f"{kind}; required"
    return f"{kind}; default {default_words(argument.field_info.default)}"


def _metavar(argument: Any) -> str:
    return str(argument.names[0].strip("-")).upper()
