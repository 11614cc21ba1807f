"""One product, built and timed by trtexec on the GPU at hand.

M: tokens. N: out features. K: in features.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from patch_compile.errors import RuntimeUnavailable
from patch_compile.recipe import BuildRecipe
from patch_compile.runtimes.evidence import Evidence
from patch_compile.runtimes.trtexec import build_engine
from patch_compile.tiles.pattern import top2_of_4

__all__ = ["Timed", "gemm_model", "time_gemm", "timed"]

GemmType = Literal["fp16", "bf16"]

_TYPES: dict[GemmType, Any] = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}
_OPSET = 20


@dataclass(frozen=True)
class Timed:
    """What trtexec said of one product.

    Attributes:
        us: median microseconds on the GPU.
        version: of TensorRT.
        chosen: products on a sparse kernel, by the log; None if it does not say.
    """

    us: float
    version: str
    chosen: int | None


def gemm_model(m: int, n: int, k: int, dtype: GemmType, *, sparse24: bool) -> ir.Model:
    """Returns a model of `y (m, n) = x (m, k) @ w (k, n)`, nothing in it dynamic.

    Args:
        m: tokens.
        n: out features.
        k: in features, a multiple of 4 for a 2:4 weight.
        dtype: of all of it.
        sparse24: two of every four weights along K are zero, the smaller ones.
    """
    kind = ir.DataType.FLOAT16 if dtype == "fp16" else ir.DataType.BFLOAT16
    x = ir.Value(name="x", type=ir.TensorType(kind), shape=ir.Shape([m, k]))
    weight = ir.tensor(_weight(n, k, dtype, sparse24), name="w")
    w = ir.Value(name="w", type=x.type, shape=ir.Shape([k, n]), const_value=weight)
    product = ir.Node("", "MatMul", [x, w], name="product")
    y = product.outputs[0]
    y.name, y.type, y.shape = "y", ir.TensorType(kind), ir.Shape([m, n])
    graph = ir.Graph(
        [x],
        [y],
        nodes=[product],
        initializers=[w],
        opset_imports={"": _OPSET},
        name="gemm",
    )
    return ir.Model(graph, ir_version=10)


def _weight(n: int, k: int, dtype: GemmType, sparse24: bool) -> NDArray[Any]:
    weight = np.random.default_rng(0).standard_normal((n, k), np.float32) / np.sqrt(k)
    if sparse24:
        weight *= top2_of_4(np.abs(weight))
    return np.ascontiguousarray(weight.T.astype(_TYPES[dtype]))


def time_gemm(
    m: int, n: int, k: int, dtype: GemmType, *, sparse24: bool, timeout: float
) -> Timed:
    """Builds and times one product; a 2:4 one may take sparse kernels, and need not.

    Raises:
        RuntimeUnavailable: if trtexec is missing, dies, takes too long or tells no time.
        ModelError: if trtexec refuses the product.
    """
    recipe = BuildRecipe(engine="trtexec", sparse=sparse24, timing_cache="", timeout=timeout)
    with tempfile.TemporaryDirectory(prefix="patch-compile-") as name:
        folder = Path(name)
        ir.save(gemm_model(m, n, k, dtype, sparse24=sparse24), folder / "gemm.onnx")
        found = build_engine(folder / "gemm.onnx", folder / "gemm.engine", recipe).evidence
    return timed(found, (m, n, k))


def timed(found: Evidence, size: tuple[int, int, int]) -> Timed:
    """Returns the time that trtexec told of one product.

    Args:
        found: what its log told.
        size: M, N, K of the product, for the message.

    Raises:
        RuntimeUnavailable: if it told none, or none that a product can take.
    """
    compute = None if found.performance is None else found.performance.compute
    if compute is None or not compute.median > 0:
        told = "no GPU compute time" if compute is None else f"{compute.median} ms"
        raise RuntimeUnavailable(
            f"trtexec | told {told} of a product of {' x '.join(map(str, size))}; expected "
            "'GPU Compute Time' in its log; try another release of TensorRT"
        )
    return Timed(1000 * compute.median, found.version, found.sparsity.chose)
