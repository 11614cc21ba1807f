"""Which element types a machine is fast in."""

import logging

from patch_compile._require import require

__all__ = ["warn_if_slow"]

logger = logging.getLogger(__name__)


def warn_if_slow(precision: str) -> None:
    """Says in the log that bf16 will take longer than fp32, where it does.

    Args:
        precision: of the passes, `fp32` or `bf16`.
    """
    if precision == "bf16" and not _has_bf16():
        logger.warning(
            "precision | is bf16, which this processor has no instructions for: a pass takes "
            "many times as long as in fp32; leave it out"
        )


def _has_bf16() -> bool:
    """Tells whether the device that learns multiplies in bf16; torch emulates it elsewhere."""
    torch = require("torch", "learn")
    if torch.cuda.is_available():
        real: bool = torch.cuda.is_bf16_supported(including_emulation=False)
        return real
    known: bool = torch.backends.mkldnn.is_available() and (
        torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
    return known
