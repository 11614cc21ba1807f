"""Keeping the chatter of torch and transformers from the user's terminal."""

from collections.abc import Iterator
from contextlib import contextmanager

from patch_compile._hush import hushed
from patch_compile._require import require

__all__ = ["first_line", "quiet"]

_TALKERS = ("transformers", "huggingface_hub", "torch.onnx", "onnxscript", "onnx_ir")


@contextmanager
def quiet() -> Iterator[None]:
    """Silences bars, notes and warnings of transformers, torch and its exporter.

    Errors still pass, as log records or exceptions; what was set before is set again after.
    """
    talk = require("transformers.utils.logging", "learn")
    bars = talk.is_progress_bar_enabled()
    talk.disable_progress_bar()
    try:
        with hushed(_TALKERS):
            yield
    finally:
        if bars:
            talk.enable_progress_bar()


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or its type when it has none."""
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__
