"""What windows of tokens a model can read."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from patch_compile._require import require
from patch_compile.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["check_windows"]


def check_windows(model: "PreTrainedModel", windows: NDArray[np.int64]) -> None:
    """Refuses windows that the embeddings of a model have no row for.

    Args:
        model: a language model.
        windows: token numbers, int64 (W, T).

    Raises:
        ModelError: if a token is outside the vocabulary, or a window is longer than the
            positions that the model has learned.
    """
    if not windows.size:
        return
    embeddings: Any = model.get_input_embeddings()
    size = int(embeddings.weight.shape[0])
    if windows.max() >= size or windows.min() < 0:
        raise ModelError(
            f"text | has token {windows.max()}, the model knows {size}; "
            "give the tokenizer of this model"
        )
    longest = min(_positions(model), default=windows.shape[1])
    if windows.shape[1] > longest:
        raise ModelError(
            f"window | has {windows.shape[1]} tokens, the model has learned {longest} "
            "positions; take a shorter --window"
        )


def _positions(model: "PreTrainedModel") -> Iterator[int]:
    """Yields how many positions each table of learned ones has; rotary ones have no table."""
    nn = require("torch.nn", "learn")
    modules: Any = model.named_modules()
    for name, table in modules:
        if isinstance(table, nn.Embedding) and ("position" in name or name.endswith(".wpe")):
            # The first rows may stand for padding: RoBERTa has a place for it, OPT an offset.
            padding = -1 if table.padding_idx is None else int(table.padding_idx)
            yield int(table.num_embeddings) - int(getattr(table, "offset", padding + 1))
