"""Which GPUs are there, and which of them a program may use."""

import os
from pathlib import Path

import pytest

from patch_compile.runtimes.gpu import find_gpus

ROWS = """0, GPU-aa11, NVIDIA A100-SXM4-80GB, 8.0, 550.54, 81920
1, GPU-bb22, NVIDIA L4, 8.9, 550.54, 23034
10, GPU-bc33, NVIDIA L40S, 8.9, 550.54, 46068
"""


@pytest.mark.parametrize(
    ("visible", "found"),
    [
        (None, ["NVIDIA A100-SXM4-80GB", "NVIDIA L4", "NVIDIA L40S"]),
        ("1", ["NVIDIA L4"]),
        ("10,0", ["NVIDIA L40S", "NVIDIA A100-SXM4-80GB"]),
        ("GPU-b", ["NVIDIA L4"]),
        ("GPU-bc33", ["NVIDIA L40S"]),
        ("0,7,1", ["NVIDIA A100-SXM4-80GB"]),
        ("-1", []),
        ("", []),
    ],
)
def test_only_gpus_that_cuda_may_use_are_found(
    visible: str | None, found: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\ncat <<'END'\n{ROWS}END\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [gpu.name for gpu in find_gpus()] == found
