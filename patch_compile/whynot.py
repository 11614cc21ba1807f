"""Why a product that is 2:4 does not run sparse.

N: out features. K: in features. M: tokens.

Facts come first: what was not asked for, what cannot be. Where TensorRT timed dense and sparse
kernels and dense won, it does not say by how much; then the known causes that fit are named.
"""

from dataclasses import dataclass

__all__ = ["Case", "too_old", "why_not"]

# Sparse kernels win where both are larger: NVIDIA in TensorRT#3849.
_NARROW = 256
# Measured 2:4 and dense products: 2:4 wins from about this many tokens on A100 and RTX 4090
# (bf16); on H100 from 512 to 1024 (data of SlideSparse, arXiv 2603.05232).
_FEW_TOKENS = 256
# The first compute capability with sparse tensor cores.
_FIRST_SM = 80
_FIRST_FP8_SM = 89

# TensorRT's guide asks for FP16 or INT8 math; bf16 and fp8 kernels are in its library.
_DENSE_TYPES = ("float", "float32", "double", "float64")
_FP8 = ("float8e4m3fn", "float8_e4m3fn", "fp8")


@dataclass(frozen=True)
class Case:
    """One product without a sparse kernel, or with none that is known.

    Attributes:
        known: its kernel is known to be dense.
        requested: sparse kernels were allowed.
        backend: that built the engine.
        sm: compute capability of the GPU, as in 86; None if unknown.
        eligible: its stored bytes are 2:4, by our own check.
        found: the build log lists it among the eligible layers; None if there is no list.
        shape: (N, K).
        dtype: element type that its weight is stored in.
        tokens: M at the point that kernels were timed at; None if unknown.
        outputs: element types of its layer's outputs, as the inspector words them.
        swallowed: it is in no named layer, and Myelin compiled a region whole.
        told: a log or an inspector told anything of kernels.
    """

    known: bool
    requested: bool
    backend: str
    sm: int | None
    eligible: bool
    found: bool | None
    shape: tuple[int, int]
    dtype: str
    tokens: int | None
    outputs: tuple[str, ...]
    swallowed: bool
    told: bool


def too_old(sm: int) -> bool:
    """Tells whether a compute capability, as in 75, has no sparse tensor cores."""
    return sm < _FIRST_SM


def why_not(case: Case) -> str:
    """Returns the reason, in a few words.

    The order matters: a fact that rules sparse kernels out hides the causes after it.
    """
    fact = _ruled_out(case)
    if fact is not None:
        return fact
    if not case.known:
        return _untold(case)
    if case.found is False:
        return "TensorRT does not list it as eligible"
    hints = _hints(case)
    return "timed slower than dense" + (f": {'; '.join(hints)}" if hints else "")


def _ruled_out(case: Case) -> str | None:
    if not case.requested:
        return "sparse kernels were not requested"
    if not case.eligible:
        return f"not 2:4 as stored ({case.dtype}); cast first, mask after"
    if case.sm is not None and too_old(case.sm):
        return f"SM {case.sm} has no sparse tensor cores; they came with SM {_FIRST_SM}"
    dtype = case.dtype.lower()
    if dtype in _DENSE_TYPES:
        return f"{dtype} has no sparse kernels; compile an fp16 model"
    if dtype in _FP8 and case.sm is not None and case.sm < _FIRST_FP8_SM:
        return f"SM {case.sm} has no fp8; it came with SM {_FIRST_FP8_SM}"
    return None


def _untold(case: Case) -> str:
    if case.swallowed:
        return "swallowed by Myelin, whose region names no kernels"
    if case.backend == "tensorrt_rtx" and not case.told:
        return "TensorRT-RTX tells nothing of kernels without a GPU"
    if not case.told:
        return "neither log nor inspector told; build verbosely with trtexec or tensorrt"
    return "in no layer that the engine names"


def _hints(case: Case) -> list[str]:
    n, k = case.shape
    hints = []
    if _keeps_int8_apart(case):
        hints.append("its output is not int8; quantize the output too (Model-Optimizer#1664)")
    if min(n, k) <= _NARROW:
        hints.append(f"narrow, {n} x {k}; sparse wins above {_NARROW}")
    if case.tokens is not None and case.tokens < _FEW_TOKENS:
        hints.append(
            f"timed at {case.tokens} tokens; sparse wins from about {_FEW_TOKENS}; raise the "
            "middle of --batch or --sequence"
        )
    return hints


def _keeps_int8_apart(case: Case) -> bool:
    """An int8 product whose output leaves int8: its sparse kernels need an int8 epilogue."""
    if not case.dtype.lower().startswith("int8") or not case.outputs:
        return False
    return not any("int8" in output.lower() for output in case.outputs)
