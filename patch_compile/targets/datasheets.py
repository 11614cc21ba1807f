"""What vendors print about GPUs: the rates that bound any kernel.

Rates are dense, with fp32 accumulation where the sheet tells one from another. Measured
tables correct them: only the ratios between GPUs matter, for those without a table. Numbers
that no sheet prints are derived: multiprocessors are CUDA cores over 128 (64 on the A100 and
A30), and GB10's 125 TFLOP/s of bf16 are its 1 PFLOP/s of fp4 with sparsity, halved thrice.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["BYTES", "GPUS", "Gpu", "named"]

# Bytes of one operand element.
BYTES: Mapping[str, int] = {"bf16": 2, "fp16": 2, "int8": 1, "fp8": 1}


@dataclass(frozen=True)
class Gpu:
    """One GPU's datasheet.

    Attributes:
        name: for people.
        sms: streaming multiprocessors.
        bandwidth: of the memory, GB/s.
        tflops: dense rate of bf16 and fp16 tensor cores, TFLOP/s.
        faster: by dtype, its rate over that of bf16; dtypes missing here have no kernel.
        source: the sheet.
        like: the measured GPU whose efficiencies an estimate borrows; "" if it is measured.
    """

    name: str
    sms: int
    bandwidth: float
    tflops: float
    faster: Mapping[str, float]
    source: str
    like: str = ""

    def rate(self, dtype: str) -> float:
        """Dense multiply-adds, counted as two, a microsecond."""
        return self.tflops * self.faster[dtype] * 1e6


_AMPERE = {"bf16": 1.0, "fp16": 1.0, "int8": 2.0}
_HOPPER = {"bf16": 1.0, "fp16": 1.0, "int8": 2.0, "fp8": 2.0}
# GeForce halves bf16, fp16 and fp8 with fp32 accumulation; int8 keeps its full rate.
_GEFORCE_AMPERE = {"bf16": 1.0, "fp16": 1.0, "int8": 4.0}
_GEFORCE_ADA = {"bf16": 1.0, "fp16": 1.0, "int8": 4.0, "fp8": 2.0}

_A100 = "NVIDIA A100 80GB SXM datasheet"
_ADA = "NVIDIA Ada GPU architecture whitepaper"
_BLACKWELL = "NVIDIA RTX Blackwell GPU architecture whitepaper"
_GA102 = "NVIDIA Ampere GA102 GPU architecture whitepaper"

GPUS: Mapping[str, Gpu] = {
    "a100": Gpu("A100", 108, 2039, 312, _AMPERE, _A100),
    "h100": Gpu("H100", 132, 3350, 989, _HOPPER, "NVIDIA H100 SXM datasheet"),
    "b200": Gpu("B200", 148, 8000, 2250, _HOPPER, "NVIDIA DGX B200 datasheet, by 8"),
    "rtx4090": Gpu("RTX 4090", 128, 1008, 165.2, _GEFORCE_ADA, _ADA),
    "rtx5080": Gpu("RTX 5080", 84, 960, 112.6, _GEFORCE_ADA, _BLACKWELL),
    "gb10": Gpu("GB10", 48, 273, 125, _HOPPER, "NVIDIA DGX Spark datasheet, derived"),
    "a30": Gpu("A30", 56, 933, 165, _AMPERE, "NVIDIA A30 datasheet", "a100"),
    "a10": Gpu("A10", 72, 600, 125, _AMPERE, "NVIDIA A10 datasheet", "a100"),
    "a40": Gpu("A40", 84, 696, 149.7, _AMPERE, "NVIDIA A40 datasheet", "a100"),
    "a6000": Gpu("RTX A6000", 84, 768, 154.8, _AMPERE, _GA102, "a100"),
    "rtx3090": Gpu("RTX 3090", 82, 936, 71, _GEFORCE_AMPERE, _GA102, "a100"),
    "l4": Gpu("L4", 58, 300, 121, _HOPPER, "NVIDIA L4 datasheet", "rtx4090"),
    "l40s": Gpu("L40S", 142, 864, 362, _HOPPER, "NVIDIA L40S datasheet", "rtx4090"),
    "rtx6000ada": Gpu("RTX 6000 Ada", 142, 960, 364, _HOPPER, _ADA, "rtx4090"),
    "rtx4080": Gpu("RTX 4080", 76, 716.8, 97.5, _GEFORCE_ADA, _ADA, "rtx4090"),
    "h200": Gpu("H200", 132, 4800, 989, _HOPPER, "NVIDIA H200 SXM datasheet", "h100"),
    "rtx5090": Gpu("RTX 5090", 170, 1792, 209.5, _GEFORCE_ADA, _BLACKWELL, "rtx5080"),
}

# Words that make of a name another chip, or one with another memory: an RTX 4080 SUPER is no
# RTX 4080, and the sheets of A100 and H100 are those of SXM modules.
_OTHERS = frozenset(
    {"laptop", "super", "ti", "max", "d", "pcie", "nvl", "mig", "40gb", "64gb", "96gb"}
)


def named(name: str) -> str | None:
    """Returns the key of the GPU that its driver calls `name`; None if no sheet is here."""
    words = _words(name)
    found = [key for key, gpu in GPUS.items() if _words(gpu.name) <= words]
    if not found or words & _OTHERS:
        return None
    return max(found, key=lambda key: len(_words(GPUS[key].name)))


def _words(name: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", name.lower()))
