"""Digests that tie a mask to the weight it was made for.

N: out features. K: in features.
"""

import hashlib
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from patch_compile.tiles.inspect import Rows

__all__ = ["FLOAT_TYPES", "STORED", "digest", "digest_key", "digest_rows", "digests"]

FLOAT_TYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}

# Blocks of about this many elements stay in the second-level cache.
_BLOCK_ELEMENTS = 2**20

# Exporters store a weight as (N, K) or turned, (K, N). Turning gigabytes to hash them costs
# more than hashing, so the digest of either layout is kept.
STORED = {False: "", True: ".T"}


def digest_key(dtype: str, *, transposed: bool) -> str:
    """The key of a digest: `float16` for a weight stored (N, K), `float16.T` for (K, N)."""
    return dtype + STORED[transposed]


def digest(stored: NDArray[Any]) -> str:
    """Returns the sha256 of the row-major little-endian bytes of an array as it is stored."""
    return hashlib.sha256(np.ascontiguousarray(stored).view(np.uint8).data).hexdigest()


def digest_rows(rows: Rows, chosen: slice, columns: slice) -> str:
    """Returns the digest of a block of an array whose rows are read as they are sliced."""
    total = hashlib.sha256()
    step = max(1, _BLOCK_ELEMENTS // max(1, rows.shape[1]))
    for at in range(chosen.start, chosen.stop, step):
        part = rows[at : min(at + step, chosen.stop)][:, columns]
        total.update(np.ascontiguousarray(part).view(np.uint8).data)
    return total.hexdigest()


def digests(weight: NDArray[Any]) -> dict[str, str]:
    """Returns the digests of an (N, K) float weight in every type and layout of an export."""
    known = {}
    with np.errstate(over="ignore"):
        for name, dtype in FLOAT_TYPES.items():
            cast = weight.astype(dtype)
            known[digest_key(name, transposed=False)] = digest(cast)
            known[digest_key(name, transposed=True)] = digest(cast.T)
    return known
