"""The one door to optional packages."""

import importlib
from types import ModuleType

from patch_compile.errors import RuntimeUnavailable

__all__ = ["require"]


def require(module: str, extra: str) -> ModuleType:
    """Returns the imported `module`, or names the pip command that installs it.

    Raises:
        RuntimeUnavailable: if the module, or one it needs, is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise RuntimeUnavailable(
            f"package '{module}' | {error}; this step needs it: "
            f"pip install 'patch-compile[{extra}]'"
        ) from error
