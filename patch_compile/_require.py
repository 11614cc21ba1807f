"""The one door to optional packages."""

import importlib
from importlib.metadata import PackageNotFoundError, requires
from types import ModuleType

from patch_compile.errors import RuntimeUnavailable

__all__ = ["pip_install", "require"]

_US = "patch-compile"


def require(module: str, extra: str) -> ModuleType:
    """Returns the imported `module`, or names the pip command that installs it.

    Raises:
        RuntimeUnavailable: if the module, or one it needs, is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise RuntimeUnavailable(
            f"package '{module}' | {error}; this step needs it: {pip_install(extra)}"
        ) from error


def pip_install(extra: str, package: str = "") -> str:
    """Returns the pip command for an extra of ours, or for its packages of such a name.

    It names the packages themselves, so that it works where no index has ours: for a checkout.
    """
    try:
        stated = [text.partition(";") for text in requires(_US) or ()]
    except PackageNotFoundError:
        # A checkout on PYTHONPATH.
        stated = []
    mark = f'extra == "{extra}"'
    names = [
        name.strip()
        for name, _, marker in stated
        if marker.strip() == mark and name.startswith(package)
    ]
    wanted = names or [f"{_US}[{extra}]"]
    return f"pip install {' '.join(map(repr, wanted))}"
