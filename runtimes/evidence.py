"""What a GPU said: the facts that build logs, inspectors and timings leave behind.

Nothing here is a guess. A field is None, or a tuple empty, where nobody said anything.
"""

import re
from dataclasses import dataclass

__all__ = [
    "DeviceMemory",
    "EngineLayer",
    "Evidence",
    "Performance",
    "Sparsity",
    "Spread",
    "sparse_kernel",
]

# Names of 2:4 kernels, as in sm80_xmma_sparse_gemm_..._sptensor16x8x64 (the names inside the
# library) and sm80_xmma_fprop_avdt_sparse_int8int8_... (NVIDIA/TensorRT#4020); `spmma` is
# CUTLASS's and cuSPARSELt's.
_SPARSE_KERNEL = re.compile(r"_sparse_|sparse_?gemm|sparse_?conv|sptensor|spmma|sp_?gemm")


def sparse_kernel(tactic: str) -> bool:
    """Tells whether a tactic's name is that of a 2:4 kernel."""
    return _SPARSE_KERNEL.search(tactic.lower()) is not None


@dataclass(frozen=True)
class Sparsity:
    """The last `(Sparsity)` lines of a build log.

    Attributes:
        found: number of layers that TensorRT calls eligible.
        eligible: their names, where the log lists them.
        chose: number of layers that got a sparse kernel.
        chosen: their names, where the log lists them.
    """

    found: int | None = None
    eligible: tuple[str, ...] | None = None
    chose: int | None = None
    chosen: tuple[str, ...] | None = None


@dataclass(frozen=True)
class EngineLayer:
    """One layer of an engine.

    Attributes:
        name: as the engine names it; fusions join names by ` + `.
        kind: the layer type; empty where only names were exported.
        tactic: the kernel's name; empty where the inspector gives none.
        nodes: the ONNX nodes that went into it, as far as metadata or name tell.
        outputs: element types of its outputs, as the inspector words them.
        inputs: element types of its inputs.
        sparse_weights: the inspector's `HasSparseWeights`: a fact about weights, no choice
            of a kernel (NVIDIA/TensorRT#4694).
    """

    name: str
    kind: str = ""
    tactic: str = ""
    nodes: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    sparse_weights: bool | None = None

    @property
    def sparse(self) -> bool:
        """The kernel is a 2:4 kernel."""
        return sparse_kernel(self.tactic)

    @property
    def opaque(self) -> bool:
        """A whole region that Myelin compiled, of which only the ends are named."""
        return "ForeignNode[" in self.name


@dataclass(frozen=True)
class Spread:
    """A time in milliseconds over many runs.

    Attributes:
        least: the shortest.
        most: the longest.
        mean: the average.
        median: the middle one.
        percentiles: (percent, milliseconds), as the log gives them.
    """

    least: float
    most: float
    mean: float
    median: float
    percentiles: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Performance:
    """What trtexec measured.

    Attributes:
        throughput: queries a second.
        latency: host to device, compute and back.
        compute: on the GPU alone.
        build: seconds the build took.
    """

    throughput: float | None = None
    latency: Spread | None = None
    compute: Spread | None = None
    build: float | None = None


@dataclass(frozen=True)
class DeviceMemory:
    """Memory that an engine wants on the GPU, in bytes, as its builder's log tells.

    Attributes:
        weights: of the engine.
        persistent: kept by one execution context for as long as it lives.
        activations: of one execution context, for what layers pass on and for scratch, at the
            largest shapes of the profile.
        context: what one execution context takes of the last, by the engine's own word or
            trtexec's; None where no GPU loaded it.
    """

    weights: int | None = None
    persistent: int | None = None
    activations: int | None = None
    context: int | None = None

    @property
    def total(self) -> int | None:
        """All of an engine with one context; None where the log leaves a part out.

        CUDA's own share and the inputs and outputs, which are the caller's, are not in it.
        """
        working = self.activations if self.context is None else self.context
        parts = (self.weights, self.persistent, working)
        known = [part for part in parts if part is not None]
        return sum(known) if len(known) == len(parts) else None


@dataclass(frozen=True)
class Evidence:
    """All that is known of how an engine came out.

    Attributes:
        backend: that built it.
        version: of the backend; empty if unknown.
        device: the GPU's name; empty if unknown.
        sm: its compute capability, as in 86; None if unknown.
        requested: sparse kernels were allowed.
        sparsity: what the build log says.
        layers: what the inspector says; empty if nobody asked it.
        symbols: sizes of the dynamic axes at the point that tactics were timed at.
        performance: what was measured.
        memory: what the engine wants on the GPU.
    """

    backend: str
    version: str = ""
    device: str = ""
    sm: int | None = None
    requested: bool = True
    sparsity: Sparsity = Sparsity()
    layers: tuple[EngineLayer, ...] = ()
    symbols: tuple[tuple[str, int], ...] = ()
    performance: Performance | None = None
    memory: DeviceMemory = DeviceMemory()
