"""`patch-compile`: the verbs, and one line for every error a user can mend."""

import os
import signal
import sys
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from inspect import signature
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

import cyclopts
from cyclopts import App, Parameter

from patch_compile.cli import verbs
from patch_compile.cli.arguments import (
    config_reader,
    config_text,
    not_a_range,
    shown,
    split_lists,
)
from patch_compile.cli.bench_verb import bench
from patch_compile.cli.build_verb import build, results
from patch_compile.cli.calibrate_verb import calibrate
from patch_compile.cli.console import help_console, say, set_up_logging
from patch_compile.cli.doctor_verb import doctor
from patch_compile.cli.eval_verb import eval_
from patch_compile.cli.generate_verb import generate
from patch_compile.cli.learning_verbs import cut, learn
from patch_compile.cli.numbers import check_numbers
from patch_compile.cli.outputs import Kind, check_json
from patch_compile.cli.permute_verb import permute
from patch_compile.cli.plan_verb import plan
from patch_compile.cli.report_verb import report
from patch_compile.errors import Mismatch, PatchCompileError, RecipeError
from patch_compile.io.atomic import write_text

__all__ = ["app", "main", "run"]

_HELP = """Compile tile-wise 2:4-sparse ONNX models for TensorRT.

`patch-compile model.onnx --tiles masks.json -o out/` is the main job; the verbs below make
its inputs and judge its output. Results go to stdout, everything else to stderr. Exit code 0
is fine, 1 an error you can mend, 2 a verification over its tolerance.
"""

# The main job and the verb that build engines.
_WITH_FLAGS = ("", "build")

# The parser's own would name a COMMAND that the main job has not.
_USAGE = """Usage: patch-compile [OPTIONS] --tiles MASKS MODEL
       patch-compile COMMAND [OPTIONS] ..."""

app = App(
    name="patch-compile",
    help=_HELP,
    usage=_USAGE,
    help_format="markdown",
    default_parameter=Parameter(negative_iterable=(), show_default=shown),
    result_action="return_value",
    console=help_console,
)
app.default(verbs.compile_)
for verb in (permute, learn, cut, verbs.export, plan, verbs.inspect):
    app.command(verb)
app.command(build)
app.command(results)
app.command(verbs.verify)
app.command(report)
app.command(eval_, name="eval")
app.command(doctor)
app.command(bench)
app.command(calibrate)
app.command(generate)
app.command(verbs.demo)
# `run` says that nothing is half-written.
app.meta.suppress_keyboard_interrupt = False


@app.meta.default
def _launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    config: Path | None = None,
    save_config: Path | None = None,
    log_level: Literal["debug", "info", "warning", "error"] = "warning",
) -> None:
    """Options of every verb.

    Args:
        config: a .toml, .yaml or .json file with options: those of the main job at its top,
            those of a verb in a table of its name. The command line wins.
        save_config: write the options of this run, once it is done, as .json that `config`
            reads; an earlier one is replaced.
        log_level: the least of what is logged.
    """
    set_up_logging(log_level)
    given = () if config is None else (config_reader(config, _verbs()),)
    app.config = (*given, check_numbers)
    spread = split_lists(tokens)
    _check_verb(spread)
    _check_flags(tokens)
    command, bound, _ = app.parse_args(spread, exit_on_error=False, print_error=False)
    bound.apply_defaults()
    if save_config is not None:
        _check_saved(save_config, [config, *bound.args, *bound.kwargs.values()])
    command(*bound.args, **bound.kwargs)
    if save_config is not None:
        verb, _, _ = app.parse_commands(spread)
        write_text(save_config, config_text(verb, bound.kwargs))


def _check_saved(path: Path, given: Iterable[Any]) -> None:
    """Refuses, before the command runs, a place where its options could not be saved."""
    if path.suffix != ".json":
        raise RecipeError(
            f"save-config '{path}' | is no .json file, and JSON is what is written; name it "
            f"'{path.with_suffix('.json').name}'"
        )
    several = (value if isinstance(value, tuple) else (value,) for value in given)
    files = [file for file in chain.from_iterable(several) if isinstance(file, str | Path)]
    told = "is a file of this command, and would be overwritten; choose another name"
    check_json(path, Kind("configuration", frozenset(), _options()), files, told=told)


def _options() -> frozenset[str]:
    """What may stand at the top of a configuration: verbs, and options of the main job."""
    found = set(_verbs())
    for name, parameter in signature(verbs.compile_).parameters.items():
        recipe = parameter.default
        flat = is_dataclass(recipe) and not isinstance(recipe, type)
        found |= {f.name for f in fields(recipe)} if flat else {name.removesuffix("_")}
    return frozenset(found | {name.replace("_", "-") for name in found})


def _check_verb(tokens: Sequence[str]) -> None:
    """Tells a mistyped verb from a model, which has a file."""
    first = tokens[0] if tokens else "-"
    known = _verbs()
    if first.startswith("-") or first in known or "." in first or Path(first).exists():
        return
    raise RecipeError(
        f"'{first}' | is neither a file nor a verb; expected an .onnx file or one of "
        f"{', '.join(known)}"
    )


def _check_flags(tokens: Sequence[str]) -> None:
    """Refuses flags of trtexec behind `--` where nothing takes them."""
    behind = tokens[tokens.index("--") + 1 :] if "--" in tokens else ()
    verb = next(iter(app.parse_commands(tokens)[0]), "")
    if behind and verb not in _WITH_FLAGS:
        raise RecipeError(
            f"{verb} | has '{behind[0]}' behind `--`, where flags of trtexec stand, and it "
            "takes none; leave `--` out, or build, as in patch-compile build model.onnx "
            "--engine trtexec -- --device=1"
        )


def _verbs() -> list[str]:
    return sorted(name for name in app if not name.startswith("-"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits with its code."""
    # A stop from outside must clean up what was begun, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Runs one command line and returns its exit code."""
    if not sys.stderr.isatty():
        # Libraries below draw bars of their own, which would fill a log file.
        os.environ.setdefault("TQDM_DISABLE", "1")
    try:
        app.meta(list(arguments) or ["--help"], exit_on_error=False, print_error=False)
    except Mismatch as error:
        say(f"patch-compile: {error}")
        return 2
    except (PatchCompileError, cyclopts.CycloptsError) as error:
        say(f"patch-compile: {' '.join(_told(error).split())}")
        _drop_unwritten()
        return 1
    except KeyboardInterrupt:
        say("patch-compile: stopped; nothing was left half-written")
        return 130
    except BrokenPipeError:
        # The reader of our output left early, as `| head` does.
        _drop_output()
    finally:
        # The next run of this process reads a file of its own, or none.
        app.config = ()
    return 0


def _drop_unwritten() -> None:
    """Drops what a full disk does not take: Python would try it again at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        _drop_output()


def _drop_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _told(error: Exception) -> str:
    """What is said of an error: our words where the parser's tell nothing of what it takes."""
    if isinstance(error, cyclopts.UnusedCliTokensError) and error.unused_tokens:
        return f"'{error.unused_tokens[0]}' | is a word too many; leave it out, or see --help"
    wanting = error.argument if isinstance(error, cyclopts.MissingArgumentError) else None
    if wanting is None:
        return str(error)
    if wanting.token_count()[0] > 1:
        return not_a_range(wanting.name, getattr(error, "tokens_so_far", ()))
    name = wanting.name
    return f"{name.lstrip('-')} | is missing; give {name}, or see --help"
