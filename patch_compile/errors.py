"""The errors a user can act on.

Every message has one shape: the subject, a bar, what is wrong with its value, what was
expected, and how to mend it. Bugs of ours are `InternalError` and are not in the tree.
"""

__all__ = [
    "InternalError",
    "MaskError",
    "Mismatch",
    "ModelError",
    "PatchCompileError",
    "RecipeError",
    "RuntimeUnavailable",
]


class PatchCompileError(Exception):
    """Something the user can mend: the command line prints it and exits with 1."""


class RecipeError(PatchCompileError):
    """What was asked for is contradictory or out of range."""


class MaskError(PatchCompileError):
    """A mask file is damaged, unsafe, or does not fit the model."""


class ModelError(PatchCompileError):
    """A model cannot be read, is unsafe, or has nothing to work on."""


class RuntimeUnavailable(PatchCompileError):
    """A package or a program that this step needs is missing or broken."""


class Mismatch(PatchCompileError):
    """A comparison came out over its tolerance: the command line exits with 2."""


class InternalError(AssertionError):
    """A promise of ours was broken: always a bug, never the user's fault."""
