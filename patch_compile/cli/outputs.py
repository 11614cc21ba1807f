"""What a command writes: never a file that it reads, nor one of another kind.

Checked before the work, which may take hours.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from patch_compile.errors import ModelError, RecipeError
from patch_compile.io.atomic import check_file
from patch_compile.io.onnx_model import external_files, load_model
from patch_compile.parsing import DAMAGE, parse_json

__all__ = [
    "BENCH",
    "COMPARISON",
    "PLAN",
    "TABLE",
    "Kind",
    "check_folder",
    "check_json",
    "check_output",
]

# Of an output that is an input.
_OWN = "is read by this command, and would be overwritten; choose another name (-o)"


@dataclass(frozen=True)
class Kind:
    """JSON of ours, told by the keys at its top.

    Attributes:
        what: it is, for people.
        needed: keys that it always has.
        more: further ones that it may have.
    """

    what: str
    needed: frozenset[str]
    more: frozenset[str] = frozenset()

    def holds(self, path: Path) -> bool:
        """Whether a file is of this kind."""
        found = _keys(path)
        return found is not None and self.needed <= found <= self.needed | self.more


PLAN = Kind(
    "plan",
    frozenset({"version", "weights"}),
    frozenset({"groups", "predicted", "speedup"}),
)
COMPARISON = Kind("comparison of targets", frozenset({"version", "rows"}))
BENCH = Kind(
    "result of `bench`",
    frozenset({"version", "runtime", "recipe", "noise", "models", "rows"}),
)
TABLE = Kind(
    "table of a GPU",
    frozenset({"version", "gpu", "dtype", "points"}),
    frozenset({"source", "parameters"}),
)


def check_folder(output: Path) -> None:
    """Refuses the name of a file where a folder is asked for.

    Raises:
        RecipeError: if there is a file, or it is called as a model is.
    """
    if output.is_file() or (output.suffix == ".onnx" and not output.is_dir()):
        raise RecipeError(
            f"output '{output}' | names a file, and -o is a folder here; give one, as "
            f"'{output.with_name('out')}'"
        )


def check_output(
    output: Path,
    reads: Iterable[str | Path | None],
    suffix: str | None = None,
    *,
    told: str = _OWN,
) -> None:
    """Refuses an output that is an input, a folder, or of another suffix than it should be.

    Args:
        output: a file that will be written.
        reads: files that are read; words such as `infer` may be among them.
        suffix: that `output` has to have, as in `.json`; None takes any.
        told: what is said of an output that is an input.

    Raises:
        RecipeError: if it is one of them, or of a file that one of them names.
        ModelError: if it is a folder, or lies where nothing can be written.
    """
    if suffix is not None and output.suffix != suffix:
        raise RecipeError(f"output '{output}' | ends in no {suffix}; choose a name that does")
    check_file(output)
    given = [Path(path) for path in reads if path is not None]
    # What does not exist is not among the files that inputs name.
    beside = (file for path in given for file in _beside(path)) if output.exists() else ()
    for path in (*given, *beside):
        if _same(output, path):
            raise RecipeError(f"output '{output}' | {told}")


def check_json(
    output: Path, kind: Kind, reads: Iterable[str | Path | None], *, told: str = _OWN
) -> None:
    """Refuses a JSON output as `check_output` does, and one in place of other JSON.

    Raises:
        RecipeError: also if there is a file already that is not of this kind.
        ModelError: see `check_output`.
    """
    check_output(output, reads, ".json", told=told)
    if output.exists() and not kind.holds(output):
        raise RecipeError(
            f"output '{output}' | would replace a file that is no {kind.what}; move it away "
            "or choose another name"
        )


def _keys(path: Path) -> frozenset[str] | None:
    """The keys at the top of a JSON file; None of anything else."""
    try:
        data = parse_json(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return frozenset(data) if isinstance(data, dict) else None


def _same(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        # One of them is not there yet.
        return one.resolve() == other.resolve()
    except ValueError:
        # A word of a configuration file that can be no path.
        return False


def _beside(path: Path) -> Iterator[Path]:
    """The files that a model keeps its weights in, or masks their arrays."""
    try:
        if path.suffix == ".onnx":
            yield from external_files(load_model(path))
        elif path.suffix == ".json":
            yield path.parent / parse_json(path.read_text("utf-8"))["data"]
    except (ModelError, *DAMAGE):
        # Its reader tells what is wrong with it, if anything is.
        return
