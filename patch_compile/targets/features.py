"""What bounds a GEMM `Y[M, N] = X[M, K] W[N, K]^T`, and what a latency may depend on.

M: tokens. N: out features. K: in features. Q: queries.
"""

import numpy as np
from numpy.typing import NDArray

from patch_compile.targets.datasheets import BYTES, Gpu

__all__ = ["SIZES", "basis", "features", "log_roofline", "weight_bytes"]

Floats = NDArray[np.float64]

# Columns of `features`: sizes, then what the hardware makes of them.
SIZES = slice(0, 3)

# Output tiles of common tensor core kernels; one streaming multiprocessor computes one.
_TILES = ((128, 128), (128, 256), (256, 128))

# Shares of the datasheet's rates that good kernels reach, and the microseconds of starting
# one. Rough on purpose: the model learns what is left over.
_BANDWIDTH_SHARE = 0.8
_RATE_SHARE = 0.75
_START_US = 4.0

# Two bits of index for each kept weight (NVIDIA PTX ISA, mma.sp): bytes a dense weight.
_INDEX_BYTES = 0.5 * 2 / 8


def log_roofline(sizes: Floats, gpu: Gpu, dtype: str, *, sparse24: bool) -> Floats:
    """Log microseconds, (Q,), of a kernel that runs at the hardware's bounds.

    Args:
        sizes: float (Q, 3), columns M, N, K.
        gpu: its rates.
        dtype: of the operands.
        sparse24: W is 2:4: half the multiply-adds, half the values, an index for each.
    """
    memory, compute = _bounds(sizes, gpu, dtype, sparse24=sparse24)
    busy = np.hypot(memory / _BANDWIDTH_SHARE, compute / _RATE_SHARE)
    return np.log(busy + _START_US)


def features(sizes: Floats, gpu: Gpu, dtype: str, *, sparse24: bool) -> Floats:
    """What the efficiency of a kernel may depend on, float (Q, 11), logs to base 2.

    Columns: M, N, K; work lost to incomplete waves of tiles, for three tiles; arithmetic
    intensity over the machine's balance; the roofline's time; waves of tiles; bytes of the
    dense weight, which caches hold or not; bytes of one of its rows, which one tile sums.
    """
    m, n, k = sizes.T
    memory, compute = _bounds(sizes, gpu, dtype, sparse24=sparse24)
    waves = [np.ceil(m / rows) * np.ceil(n / columns) / gpu.sms for rows, columns in _TILES]
    lost = [np.log2(np.ceil(wave - 1e-9) / wave) for wave in waves]
    # 2 microseconds: below, everything is the start of a kernel.
    physics = [*lost, np.log2(compute / memory), np.log2(compute + memory + 2)]
    physics += [np.log2(waves[0]), np.log2(n * k * BYTES[dtype]), np.log2(k * BYTES[dtype])]
    return np.column_stack([np.log2(sizes), *physics])


def basis(x: Floats) -> Floats:
    """Columns that the mean is linear in, (Q, 7): one, the sizes, the lost waves."""
    sizes = (x[:, SIZES] - 10) / 5
    return np.column_stack([np.ones(len(x)), sizes, x[:, 3:6]])


def weight_bytes(dtype: str, *, sparse24: bool) -> float:
    """Bytes that are read for one weight, counted as if it were dense."""
    return 0.5 * BYTES[dtype] + _INDEX_BYTES if sparse24 else float(BYTES[dtype])


def _bounds(sizes: Floats, gpu: Gpu, dtype: str, *, sparse24: bool) -> tuple[Floats, Floats]:
    """Microseconds of all bytes at full bandwidth, and of all sums at full rate."""
    m, n, k = sizes.T
    element, weight = BYTES[dtype], weight_bytes(dtype, sparse24=sparse24)
    # Outputs are bf16 or fp16 for operands of one byte too.
    moved = n * k * weight + m * k * element + m * n * 2
    sums = 2 * m * n * k * (0.5 if sparse24 else 1.0)
    return moved / (gpu.bandwidth * 1e3), sums / gpu.rate(dtype)
