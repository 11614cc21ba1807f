"""What a text asks of a model: the next tokens, or tokens that were hidden from it.

B: windows. T: tokens in a window.
"""

from hashlib import blake2b
from inspect import signature
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from patch_compile._require import require

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["UNASKED", "questions", "uncached"]

# Where a loss looks away; torch's own number for it.
UNASKED = -100

# Of the tokens of a window: BERT's, arXiv 1810.04805.
_HIDDEN = 0.15


def questions(ids: "Tensor", mask_token: int | None) -> "tuple[Tensor, Tensor]":
    """Returns what a model reads, and what it should answer at each position.

    Args:
        ids: int64 (B, T).
        mask_token: of a masked language model: it stands for the hidden tokens, which are the
            same whenever a window is asked about. None asks for the next tokens.

    Returns:
        Two int64 (B, T); the second is `UNASKED` where no answer counts.
    """
    if mask_token is None:
        answers = ids.roll(-1, 1)
        answers[:, -1] = UNASKED
        return ids, answers
    torch = require("torch", "learn")
    rows = np.stack([_hidden(row) for row in ids.cpu().numpy()])
    hidden: Any = torch.from_numpy(rows).to(ids.device)
    return ids.masked_fill(hidden, mask_token), ids.masked_fill(~hidden, UNASKED)


def uncached(model: "nn.Module") -> dict[str, bool]:
    """Returns what keeps a model from storing keys and values: nothing, if it never does.

    Args:
        model: a language model, or one that DDP wraps.
    """
    # Encoders of transformers 4 refuse the word.
    known = signature(getattr(model, "module", model).forward).parameters
    return {"use_cache": False} if "use_cache" in known else {}


def _hidden(row: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Picks the tokens that are hidden, bool (T,), one at least."""
    # By the window alone: a run that is resumed hides the same.
    place = int.from_bytes(blake2b(row.tobytes(), digest_size=8).digest(), "little")
    hidden = np.zeros(row.size, np.bool_)
    count = max(1, round(_HIDDEN * row.size))
    hidden[np.random.default_rng(place).choice(row.size, count, replace=False)] = True
    return hidden
