"""Keeping the chatter of other packages from the user's terminal."""

import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

__all__ = ["hushed"]


@contextmanager
def hushed(names: Iterable[str]) -> Iterator[None]:
    """Silences all warnings, and the loggers of these names but for errors."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
