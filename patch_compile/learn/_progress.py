"""How long steps tell the caller where they are."""

from collections.abc import Callable

__all__ = ["Progress", "tell"]

# (done, total, what)
Progress = Callable[[int, int, str], None]


def tell(progress: Progress | None, done: int, total: int, what: str) -> None:
    """Calls `progress`, if there is one."""
    if progress is not None:
        progress(done, total, what)
