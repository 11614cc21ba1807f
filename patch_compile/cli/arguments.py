"""Small conveniences of the command line: `--sm 86,89`, configuration files."""

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from itertools import chain, islice
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from cyclopts.config import Dict

from patch_compile.errors import RecipeError
from patch_compile.evaluation.settings import EvalRecipe
from patch_compile.parsing import parse_json
from patch_compile.recipe import (
    BenchRecipe,
    BuildRecipe,
    CalibrateRecipe,
    CompileRecipe,
    ExportRecipe,
    GenerateRecipe,
    LearnRecipe,
    PermuteRecipe,
    QuantizeRecipe,
    VerifyRecipe,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["config_reader", "config_text", "not_a_range", "shown", "split_lists"]

_RECIPES = (
    BenchRecipe,
    BuildRecipe,
    CalibrateRecipe,
    CompileRecipe,
    EvalRecipe,
    ExportRecipe,
    GenerateRecipe,
    LearnRecipe,
    PermuteRecipe,
    QuantizeRecipe,
    VerifyRecipe,
)

_LOADERS: dict[str, Callable[[str], Any]] = {
    ".json": parse_json,
    ".toml": tomllib.loads,
    ".yaml": yaml.safe_load,
    ".yml": yaml.safe_load,
}

# A verb's table of lists of words, and room to spare.
_LEVELS = 6
_MOST = 10_000
_MOST_BYTES = 2**20
_PLAIN = (str, bool, int, float, list, dict, type(None))

# They are needed before a file can be read, or would be lost in it.
_COMMAND_LINE_ONLY = frozenset({"config", "save_config", "log_level"})


def config_reader(path: Path, verbs: Sequence[str]) -> Dict:
    """Returns the options of a configuration file, in the form that the parser takes.

    Args:
        path: of the file.
        verbs: what its tables may be named.

    Raises:
        RecipeError: if the file is missing, of another kind or damaged, has a table of
            another name, or sets an option that only the command line takes.
    """
    if path.suffix not in _LOADERS or not path.is_file():
        kinds = ", ".join(_LOADERS)
        raise RecipeError(f"config '{path}' | is no file of kind {kinds}; check its path")
    size = path.stat().st_size
    if size > _MOST_BYTES:
        raise RecipeError(
            f"config '{path}' | has {size} bytes; expected {_MOST_BYTES} at most"
        )
    try:
        options = _LOADERS[path.suffix](path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise RecipeError(f"config '{path}' | cannot be read: {reason}; mend it") from error
    if not isinstance(options, dict):
        raise RecipeError(f"config '{path}' | is no table; expected options and their values")
    misplaced = {str(name).replace("-", "_") for name in options} & _COMMAND_LINE_ONLY
    if misplaced:
        raise RecipeError(
            f"config '{path}' | sets {sorted(misplaced)}; give that on the command line"
        )
    _check_plain(path, options)
    _check_tables(path, options, verbs)
    return Dict(options, source=str(path))


def _check_tables(path: Path, options: Mapping[str, Any], verbs: Sequence[str]) -> None:
    """Refuses a mistyped verb: the parser takes a table for that of a verb it does not run."""
    for name, value in options.items():
        if isinstance(value, dict) and name not in verbs:
            raise RecipeError(
                f"config '{path}' | has a table '{name}', which is no verb; expected tables "
                f"of {', '.join(verbs)}"
            )


def _check_plain(path: Path, options: dict[Any, Any]) -> None:
    """Refuses what no option is, and what YAML's references make endless."""
    level: list[Any] = [options]
    for _ in range(_LEVELS):
        strange = [value for value in level if not isinstance(value, _PLAIN)]
        keys = [key for value in level if isinstance(value, dict) for key in value]
        strange += [key for key in keys if not isinstance(key, str)]
        if strange:
            raise RecipeError(
                f"config '{path}' | holds {str(strange[0])[:80]!r}; expected options by name, "
                "and texts, numbers, true, false or lists for their values"
            )
        level = list(islice(chain.from_iterable(map(_inside, level)), _MOST + 1))
        if not level:
            return
        if len(level) > _MOST:
            break
    raise RecipeError(
        f"config '{path}' | holds more than {_MOST} values, or lists in lists; expected "
        "options and their values"
    )


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def config_text(verb: Sequence[str], options: Mapping[str, Any]) -> str:
    """Returns a command's options as JSON that `config_reader` takes.

    Args:
        verb: the verb, empty for the main job.
        options: by parameter name; a recipe stands for its fields.
    """
    known: dict[str, Any] = {}
    for name, value in options.items():
        known |= (
            asdict(value) if isinstance(value, _RECIPES) else {name.removesuffix("_"): value}
        )
    given = {name: value for name, value in known.items() if value not in (None, ())}
    for key in reversed(verb):
        given = {key: given}
    return json.dumps(given, indent=1, default=str) + "\n"


def shown(default: Any) -> str | None:
    """Returns a default value as it is typed; None, and an empty list, show nothing."""
    if isinstance(default, tuple):
        return ",".join(map(str, default)) or None
    return None if default is None else str(default)


def split_lists(tokens: Sequence[str]) -> list[str]:
    """Spreads `--sm 86,89` and `--batch 1,4,8` into the tokens the parser takes.

    A pattern behind `re:` may hold commas of its own: it reaches to the end of its list.
    What stands behind `--` is another program's: each token becomes one of `--flags`.
    """
    at = tokens.index("--") if "--" in tokens else len(tokens)
    raw = [f"--flags={token}" for token in tokens[at + 1 :]]
    return [*_split(tokens[:at]), *raw]


def _split(tokens: Sequence[str]) -> list[str]:
    """Spreads the lists.

    Raises:
        RecipeError: if a list with commas has not the length that its option takes.
    """
    lists = _list_options()
    spread: list[str] = []
    option: str | None = None
    for token in tokens:
        name, equals, value = token.partition("=")
        if name in lists and equals:
            spread += _spread(name, value, lists[name])
        elif option is not None:
            spread += _spread(option, token, lists[option])
            option = None
        elif token in lists:
            option = token
        else:
            spread.append(token)
    return spread if option is None else [*spread, option]


def not_a_range(option: str, values: Sequence[str]) -> str:
    """Says of an option that takes least, best and most that it is given fewer or more."""
    return (
        f"{option.lstrip('-')} | is '{','.join(values)}'; expected 3 numbers: least, best and "
        f"most, as in {option} 1,4,8"
    )


def _spread(option: str, value: str, length: int | None) -> list[str]:
    plain, mark, pattern = f",{value}".partition(",re:")
    parts = [part for part in plain.split(",") if part]
    if not parts and not mark:
        raise RecipeError(
            f"{option.lstrip('-')} | is empty; expected a value, or several with "
            "commas; leave it out for its default"
        )
    if mark:
        parts.append(f"re:{pattern}")
    if length is not None:
        # `--batch 1 4 8` has the others in tokens of their own.
        if len(parts) not in (1, length):
            raise RecipeError(not_a_range(option, parts))
        return [option, *parts]
    return [token for part in parts for token in (option, part)]


def _list_options() -> dict[str, int | None]:
    """Options that take lists, and their length where it is fixed, read off the recipes."""
    options: dict[str, int | None] = {}
    for recipe in _RECIPES:
        hints = get_type_hints(recipe)
        for field in fields(recipe):
            if get_origin(hints[field.name]) is tuple:
                name = f"--{field.name.replace('_', '-')}"
                kinds = get_args(hints[field.name])
                options[name] = None if Ellipsis in kinds else len(kinds)
    return options
