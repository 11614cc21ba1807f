"""How long products and copies take on a GPU, predicted from measured GEMM latencies.

M: tokens. N: out features. K: in features.
"""

from patch_compile.targets.model import Prediction
from patch_compile.targets.target import Target, available, load

__all__ = ["Prediction", "Target", "available", "load"]
