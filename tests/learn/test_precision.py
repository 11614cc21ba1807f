"""A machine that is slow in bf16 says so before it starts."""

import logging
from pathlib import Path

import pytest
import torch

from patch_compile.learn import precision
from patch_compile.learn.precision import warn_if_slow

_TOLD = "precision | is bf16, which this processor has no instructions for"


def _warned(caplog: pytest.LogCaptureFixture, asked: str) -> bool:
    with caplog.at_level(logging.WARNING):
        warn_if_slow(asked)
    return any(_TOLD in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("known", [True, False])
def test_told_where_torch_emulates_it(
    known: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(precision, "_has_bf16", lambda: known)
    assert not _warned(caplog, "fp32")
    assert _warned(caplog, "bf16") is not known


def test_flags_of_the_processor_agree(caplog: pytest.LogCaptureFixture) -> None:
    """On x86 torch takes its kernels from AVX-512 on; nothing here asks torch."""
    if torch.cuda.is_available():
        pytest.skip("a GPU learns")
    flags = _flags()
    if not flags:
        pytest.skip("no x86 processor")
    assert _warned(caplog, "bf16") is ("avx512bw" not in flags)


def _flags() -> list[str]:
    try:
        told = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return []
    lines = [line for line in told.splitlines() if line.startswith("flags")]
    return lines[0].split() if lines else []
