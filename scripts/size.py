"""Fails on functions over 60 lines and files over 500; prints how large the house is."""

import ast
import sys
from pathlib import Path
from statistics import median

_FOLDERS = ("patch_compile", "passes", "runtimes")
_LONGEST_FUNCTION = 60
_LONGEST_FILE = 500


def main() -> int:
    files = [path for folder in _FOLDERS for path in _sources(Path(folder))]
    lengths = {path: path.read_text("utf-8").count("\n") for path in files}
    functions = [(n, where) for path in files for n, where in _functions(path)]
    found = [f"{path}: {n} lines" for path, n in lengths.items() if n > _LONGEST_FILE]
    found += [f"{where}: {n} lines" for n, where in functions if n > _LONGEST_FUNCTION]
    sizes = sorted(n for n, _ in functions)
    sys.stdout.write(
        f"{len(files)} files, {sum(lengths.values())} lines, longest {max(lengths.values())}; "
        f"{len(sizes)} functions, median {median(sizes):.0f} lines, "
        f"p90 {sizes[len(sizes) * 9 // 10]}, longest {sizes[-1]}\n"
    )
    for finding in found:
        sys.stdout.write(f"too long: {finding}\n")
    return 1 if found else 0


def _sources(folder: Path) -> list[Path]:
    # The two links inside patch_compile lead to folders that are listed themselves.
    return [
        p for p in sorted(folder.rglob("*.py")) if not any(q.is_symlink() for q in p.parents)
    ]


def _functions(path: Path) -> list[tuple[int, str]]:
    tree = ast.parse(path.read_text("utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(tree) if isinstance(node, kinds)]
    return [((n.end_lineno or n.lineno) - n.lineno + 1, f"{path}:{n.name}") for n in nodes]


if __name__ == "__main__":
    sys.exit(main())
