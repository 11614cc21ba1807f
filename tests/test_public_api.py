"""What is public has a name in `__all__` and a docstring."""

import ast
import inspect
import pkgutil
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

import patch_compile


def _modules(*, private: bool) -> list[str]:
    found = pkgutil.walk_packages(patch_compile.__path__, "patch_compile.")
    names = ["patch_compile", *(module.name for module in found)]
    # It is the command line: to import it is to run it.
    names.remove("patch_compile.__main__")
    return [name for name in names if private or "._" not in name]


def _definitions(module: ModuleType) -> Iterator[tuple[str, object]]:
    """Classes and functions that a module defines itself."""
    for name, value in vars(module).items():
        ours = getattr(value, "__module__", None) == module.__name__
        if ours and (inspect.isclass(value) or inspect.isfunction(value)):
            yield name, value


def _methods(kind: type) -> Iterator[tuple[str, object]]:
    for name, value in vars(kind).items():
        plain = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        if not name.startswith("_") and (
            inspect.isfunction(plain) or isinstance(plain, property)
        ):
            yield name, plain


def test_all_layers_are_found() -> None:
    packages = {name.split(".")[1] for name in _modules(private=False) if name.count(".") > 1}
    assert packages == {
        *("bench", "cli", "evaluation", "io", "learn", "page", "passes"),
        *("recipe", "runtimes", "targets", "tiles"),
    }


@pytest.mark.parametrize("name", _modules(private=False))
def test_every_module_names_what_it_offers(name: str) -> None:
    module = import_module(name)
    if hasattr(module, "__path__") and name != "patch_compile":
        assert list(_definitions(module)) == [], "a package's names live in its modules"
        return
    assert len(module.__all__) == len(set(module.__all__))
    assert [entry for entry in module.__all__ if not hasattr(module, entry)] == []
    assert [entry for entry in module.__all__ if entry.startswith("_")] == []


@pytest.mark.parametrize("name", _modules(private=False))
def test_everything_public_says_what_it_is(name: str) -> None:
    module = import_module(name)
    silent = [] if module.__doc__ else [name]
    for found, value in _definitions(module):
        if found.startswith("_"):
            continue
        parts = _methods(value) if inspect.isclass(value) else iter(())
        members = [(found, value), *((f"{found}.{part}", member) for part, member in parts)]
        # A dataclass without a docstring gets its signature for one.
        silent += [n for n, v in members if not v.__doc__ or v.__doc__.startswith(f"{n}(")]
    assert silent == []


def test_private_modules_have_docstrings_too() -> None:
    for name in _modules(private=True):
        spec = find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        tree = ast.parse(Path(spec.origin).read_text("utf-8"))
        assert ast.get_docstring(tree), name


def test_names_of_the_package_resolve() -> None:
    for name in patch_compile.__all__:
        value = getattr(patch_compile, name)
        assert value.__name__ == name
        assert value.__doc__


def test_type_checkers_see_what_the_package_gives() -> None:
    tree = ast.parse(Path(patch_compile.__file__).read_text("utf-8"))
    seen = {
        alias.name: f"{node.module}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("patch_compile.")
        for alias in node.names
    }
    given = {name: getattr(patch_compile, name).__module__ for name in patch_compile.__all__}
    assert seen == given


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'patch_compile' has no attribute 'compile'"):
        _ = patch_compile.compile  # type: ignore[attr-defined]
    assert not hasattr(patch_compile, "_HOME")
