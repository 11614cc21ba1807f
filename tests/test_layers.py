"""The two top-level folders are imported under the package's name only.

import-linter, which `make check` runs, holds the arrows between layers; it cannot see this.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("patch_compile", "passes", "runtimes", "tests", "benchmarks", "scripts", "fuzz")
COPIES = {"passes", "runtimes"}


def _imported(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            names.add(node.module)
        elif isinstance(node, ast.ImportFrom):
            names.add("." * node.level)
    return names


def _sources(folder: str) -> list[Path]:
    return [path for path in sorted((ROOT / folder).rglob("*.py")) if path.is_file()]


@pytest.mark.parametrize("folder", FOLDERS)
def test_nothing_imports_a_second_copy_of_a_package(folder: str) -> None:
    sources = _sources(folder)
    assert sources, folder
    for path in sources:
        imported = _imported(ast.parse(path.read_text("utf-8")))
        copies = [name for name in imported if name.split(".")[0] in COPIES]
        assert copies == [], path
        assert [name for name in imported if name.startswith(".")] == [], path


@pytest.mark.parametrize(
    "line", ["import passes", "from runtimes.engines import x", "import a, passes.sites"]
)
def test_a_second_copy_would_be_seen(line: str) -> None:
    assert {name.split(".")[0] for name in _imported(ast.parse(line))} & COPIES


def test_the_layers_that_contributing_tells_are_those_of_the_contract() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    (told,) = re.findall(r"arrows down only: `([^`]+)`", text)
    # Python 3.10 has no reader of TOML.
    (held,) = re.findall(
        r"^layers = \[(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.M | re.S
    )
    layers = re.findall(r'"([^"]+)"', held.replace("patch_compile.", ""))
    assert [set(layer.split()) for layer in told.split(" -> ")] == [
        set(layer.split()) for layer in layers
    ]


@pytest.mark.parametrize("name", ["passes", "runtimes"])
def test_the_links_lead_to_the_folders_beside_the_package(name: str) -> None:
    link = ROOT / "patch_compile" / name
    assert link.is_symlink()
    assert str(link.readlink()) == f"../{name}"
    assert link.resolve() == ROOT / name
