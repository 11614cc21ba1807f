"""How models are exported, built, quantised, checked and timed."""

from dataclasses import dataclass
from typing import Literal

from patch_compile.errors import RecipeError
from patch_compile.recipe.checks import check_kinds, within

__all__ = [
    "Baseline",
    "BenchRecipe",
    "BenchRuntime",
    "BuildRecipe",
    "CalibrateRecipe",
    "ExportRecipe",
    "QuantizeRecipe",
    "VerifyRecipe",
]

FloatType = Literal["fp32", "fp16", "bf16"]
Precision = Literal["fp16", "bf16", "int8", "fp8"]
Hardware = Literal["same", "ampere-plus", "same-capability"]
BenchRuntime = Literal["ort-cpu", "ort-cuda", "ort-tensorrt", "ort-rtx", "trtexec"]
Calibration = Literal["minmax", "percentile", "entropy"]
Baseline = Literal["dense", "all-2:4", "ffn-only"]


@dataclass(frozen=True)
class ExportRecipe:
    """How a model becomes ONNX.

    Attributes:
        dtype: element type of weights and activations.
        opset: of the default domain.
        with_past: give the decoder a cache: keys and values of the tokens before come in as
            `past_key_values.N.key` and go out, longer, as `present.N.key`, which is what
            `generate` and serving want; plain logits of a whole text need none.
    """

    dtype: FloatType = "fp32"
    opset: int = 20
    with_past: bool = False

    def __post_init__(self) -> None:
        check_kinds(self)


@dataclass(frozen=True)
class BuildRecipe:
    """How an engine is built.

    A backend refuses what it cannot do, rather than leave it out.

    Attributes:
        engine: the backend; `none` builds nothing. `tensorrt_rtx` builds without a GPU;
            `tensorrt` and `trtexec` build for the GPU at hand.
        sm: for `tensorrt_rtx`, GPU architectures, as in `86` for compute capability 8.6,
            which is its default.
        sparse: request sparse kernels (a permission, not an order).
        strict_nans: allow only sparse kernels that keep 0 x NaN and 0 x infinity a NaN.
        precision: types that a weakly typed network of TensorRT 10 may use beside the
            graph's own; empty keeps to the graph, which is all that TensorRT 11 and RTX do.
        batch: least, best and most for dynamic batch axes; kernels are timed at the best.
        sequence: least, best and most for other dynamic axes.
        timing_cache: file of kernel timings, in the engine's folder unless its path is
            absolute, kept for the next build; empty keeps none. RTX has none.
        optimization_level: 0 to 5, how long the builder may search; None is its default.
        workspace: MiB of scratch memory at most; None is all of the GPU's.
        hardware: GPUs the engine may run on: the `same`, any from Ampere on
            (`ampere-plus`, slower), or those of the same compute capability.
        refit: let weights be replaced later; those of 2:4 pieces must then keep their zeros.
        flags: further flags of trtexec, given after `--`.
        timeout: seconds before a build is stopped.
    """

    engine: Literal["none", "tensorrt", "tensorrt_rtx", "trtexec"] = "none"
    sm: tuple[int, ...] = ()
    sparse: bool = True
    strict_nans: bool = False
    precision: tuple[Precision, ...] = ()
    batch: tuple[int, int, int] = (1, 1, 1)
    sequence: tuple[int, int, int] = (1, 512, 2048)
    timing_cache: str = "timing.cache"
    optimization_level: int | None = None
    workspace: int | None = None
    hardware: Hardware = "same"
    refit: bool = False
    flags: tuple[str, ...] = ()
    timeout: float = 1800.0

    def __post_init__(self) -> None:
        check_kinds(self)
        within("timeout", self.timeout, 1e-3, 1e9)
        if len(set(self.sm)) < len(self.sm):
            raise RecipeError(f"sm | are {self.sm}; expected each once, as in 86,89")
        if self.optimization_level is not None:
            within("optimization-level", self.optimization_level, 0, 5)
        if self.workspace is not None:
            within("workspace", self.workspace, 1, 1_000_000_000)
        for name, profile in (("batch", self.batch), ("sequence", self.sequence)):
            if not 1 <= profile[0] <= profile[1] <= profile[2]:
                raise RecipeError(
                    f"{name} | is {profile}; expected least <= best <= most, all from 1"
                )


@dataclass(frozen=True)
class QuantizeRecipe:
    """How a compiled model is quantised.

    Attributes:
        quantize: the type of products over weights, in Q/DQ nodes; None quantises nothing.
        calibration_tokens: of the text that ranges of activations are taken from.
        calibration_window: tokens in a window of it.
        quantize_ignore: globs or `re:` patterns of weights, or of their nodes, that keep
            their type; your own take the place of the default, which is the head.
        quantize_error: products keep their type where rounding would lose more than this
            share of a typical token of their input or output, 0 to 1: outliers leave the rest
            too few steps. 1 quantises them all.
        calibration: ranges of int8 activations: `minmax` takes the largest that was seen;
            `percentile` and `entropy` cut the largest off, which ruins models whose outliers
            carry meaning, as those of most language models do.
        calibration_percentile: of `percentile`, 50 to 100.
    """

    quantize: Literal["int8", "fp8"] | None = None
    calibration_tokens: int = 1024
    calibration_window: int = 128
    quantize_ignore: tuple[str, ...] = ("*lm_head*",)
    quantize_error: float = 0.1
    calibration: Calibration = "minmax"
    calibration_percentile: float = 99.999

    def __post_init__(self) -> None:
        check_kinds(self)
        within("quantize-error", self.quantize_error, 0.0, 1.0)
        within("calibration-percentile", self.calibration_percentile, 50.0, 100.0)
        within("calibration-window", self.calibration_window, 2, 1_000_000)
        within("calibration-tokens", self.calibration_tokens, self.calibration_window, 1e9)
        if self.quantize == "fp8" and self.calibration != "minmax":
            raise RecipeError(
                f"calibration | is '{self.calibration}', and fp8 takes the largest magnitude "
                "that was seen; leave it at minmax"
            )


@dataclass(frozen=True)
class VerifyRecipe:
    """What counts as equal.

    Attributes:
        atol: largest absolute difference of any output element; None picks one from the
            element type: 1e-2 for fp32, 0.5 for fp16 and bf16 (logits reach 20 to 40), and for
            a model that was cast to one of them; 20 for a quantised one.
        rtol: largest relative Frobenius error; None picks 1e-4, 2e-2 for fp16 and bf16, or
            0.25 for a quantised model, which is held against the masked one in floats.
        tokens: tokens of text for the perplexity; outputs are compared on the first window.
        window: tokens in a window.
        seed: of random inputs, where no text is given.
    """

    atol: float | None = None
    rtol: float | None = None
    tokens: int = 2048
    window: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        within("window", self.window, 2, 1_000_000)
        within("tokens", self.tokens, self.window, 1_000_000_000)
        within("seed", self.seed, 0, 2**63 - 1)
        for name in ("atol", "rtol"):
            value = getattr(self, name)
            if value is not None:
                within(name, value, 0.0, 1e12)


@dataclass(frozen=True)
class BenchRecipe:
    """How latencies are measured.

    Attributes:
        runtime: what runs the models: ONNX Runtime on its `ort-cpu`, `ort-cuda`,
            `ort-tensorrt` or `ort-rtx` provider, or engines that `trtexec` builds and times.
        tokens: of a sequence; several, as in `1,128`, are measured one after the other.
        baselines: models made from the dense one and measured in the same rounds. `all-2:4`
            and `ffn-only` have every weight that the compiled model's report names, or those
            of its MLPs alone, 2:4 by magnitude: good for times, and for nothing else.
            `dense` casts the dense model as the compiled one was cast, and is measured in
            its place.
        rebuilds: further times that the dense model is opened, on TensorRT built, anew;
            by how much they differ from the first is the noise.
        batch: sequences at a time.
        rounds: in each of them every model is timed once, in an order drawn anew.
        warmup: runs of every model before the first round.
        runs: of a model in a round; their median is the round's sample.
        confidence: of the intervals, 0.5 to 0.999.
        threads: of a runtime on the CPU; 0 leaves the number to it.
        sparse: allow sparse kernels where the runtime asks (a permission, not an order).
        seed: of inputs, orders and resampling.
        timeout: seconds that one model may take to open, or to run once more.
    """

    runtime: BenchRuntime = "ort-cpu"
    tokens: tuple[int, ...] = (128,)
    baselines: tuple[Baseline, ...] = ()
    rebuilds: int = 1
    batch: int = 1
    rounds: int = 30
    warmup: int = 3
    runs: int = 1
    confidence: float = 0.95
    threads: int = 0
    sparse: bool = True
    seed: int = 0
    timeout: float = 1800.0

    def __post_init__(self) -> None:
        check_kinds(self)
        if not self.tokens:
            raise RecipeError("tokens | is empty; expected numbers from 1, as in 1,128")
        for tokens in self.tokens:
            within("tokens", tokens, 1, 1_000_000)
        for name in ("batch", "runs"):
            within(name, getattr(self, name), 1, 1_000_000)
        within("rebuilds", self.rebuilds, 1, 9)
        within("seed", self.seed, 0, 2**63 - 1)
        if len(set(self.baselines)) < len(self.baselines):
            raise RecipeError(f"baselines | are {self.baselines}; expected each once")
        # An interval of fewer samples says nothing.
        within("rounds", self.rounds, 5, 1_000_000)
        for name in ("warmup", "threads"):
            within(name, getattr(self, name), 0, 1_000_000)
        within("confidence", self.confidence, 0.5, 0.999)
        within("timeout", self.timeout, 1e-3, 1e9)


@dataclass(frozen=True)
class CalibrateRecipe:
    """Which latencies are measured, and how.

    Attributes:
        tokens: of a run; several, as in `16,256,2048`.
        dtype: of the operands.
        like: the GPU whose datasheet is that of the GPU at hand, as in `rtx4090`; None tells
            it by its name.
        cuts: also measure halves of every weight, which pieces are like.
        timeout: seconds that one product may take to build and to run.
    """

    tokens: tuple[int, ...] = (16, 64, 256, 1024, 4096)
    dtype: Literal["fp16", "bf16"] = "fp16"
    like: str | None = None
    cuts: bool = True
    timeout: float = 600.0

    def __post_init__(self) -> None:
        check_kinds(self)
        if not self.tokens:
            raise RecipeError("tokens | is empty; expected numbers from 1, as in 16,256")
        for tokens in self.tokens:
            within("tokens", tokens, 1, 1_000_000)
        within("timeout", self.timeout, 1e-3, 1e9)
