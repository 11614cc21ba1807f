"""Recipes: what the user asked for.

The fields are the options of the command line, the keys of the configuration file and the
arguments of the Python API; there is no second schema.
"""

import re
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from patch_compile.errors import RecipeError

__all__ = [
    "BenchRecipe",
    "BuildRecipe",
    "CompileRecipe",
    "ExportRecipe",
    "LearnRecipe",
    "QuantizeRecipe",
    "VerifyRecipe",
]

OneShot = Literal["magnitude", "wanda", "sparsegpt", "descent"]
Method = Literal[
    "magnitude",
    "wanda",
    "sparsegpt",
    "descent",
    "patch-tile",
    "patch-joint",
    "maskllm",
    "topk-ste",
    "leap",
]
Selection = Literal["fisher", "error", "learned"]
Tie = Literal["mlp", "heads"]
FloatType = Literal["fp32", "fp16", "bf16"]
Precision = Literal["fp16", "bf16", "int8", "fp8"]
Hardware = Literal["same", "ampere-plus", "same-capability"]
CastType = Literal["fp16", "bf16"]
BenchRuntime = Literal["ort-cpu", "ort-cuda", "ort-tensorrt", "ort-rtx"]
LoweringChoice = Literal[
    "auto",
    "dense",
    "whole",
    "columns",
    "reduction",
    "cover",
    "residual",
    "branches",
    "sink-order",
    "merge",
]


@dataclass(frozen=True)
class CompileRecipe:
    """How masks become pieces.

    Attributes:
        lowering: `auto` takes the cheapest; any other name forces that form wherever it
            leaves a 2:4 piece. `branches`, `sink-order` and `merge` join several weights;
            `merge` cuts each of them as `auto` does.
        restore: give weights that are computed in a dense piece their unpruned values; the
            default keeps the masked model exactly.
        min_gain: the least share of multiply-adds a cut must save, 0 to 1.
        tile: geometry for mask sources that store none (`infer`, `mask.npz`).
        include: globs or `re:` patterns of mask names to take; empty takes all.
        ignore: globs or `re:` patterns of mask names to leave alone.
        check_digests: refuse a weight that is not the one its mask was made for.
        dtype: cast an fp32 graph to this first, for engines that take their types from it;
            softmax, norms and the angles of rotary embeddings stay fp32, inputs and outputs
            keep their types. None keeps all types.
        target: plan by predicted time on this GPU and dtype, as in `a100-bf16`; None counts
            multiply-adds.
        tokens: what the time of a target is made of: tokens a run and the share of the dense
            model's time that they take, as in `16:0.9,2048:0.1`; without shares, equal ones.
        sparsity: make tiles dense, dearest by score first, until this share of zeros, 0 to
            0.5, is left.
        speedup: with a target, make tiles dense, at the least loss by score, while the masked
            weights are predicted this many times as fast as dense, as in `1.25x`.
        max_loss: with a target, take the tiles that save most time while their scores, the
            loss increases that `learn` predicts, sum to no more than this.
    """

    lowering: LoweringChoice = "auto"
    restore: bool = False
    min_gain: float = 0.05
    tile: str = "128x128"
    include: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    check_digests: bool = True
    dtype: CastType | None = None
    target: str | None = None
    tokens: tuple[str, ...] = ("16:0.9", "2048:0.1")
    sparsity: float | None = None
    speedup: str | None = None
    max_loss: float | None = None

    def __post_init__(self) -> None:
        _check_kinds(self)
        _within("min-gain", self.min_gain, 0.0, 1.0)
        _ = self.profile
        self._check_budget()

    def _check_budget(self) -> None:
        given = [
            n for n in ("sparsity", "speedup", "max_loss") if getattr(self, n) is not None
        ]
        if len(given) > 1:
            raise RecipeError(f"{given[0]} | is given with {given[1]}; choose one budget")
        if self.sparsity is not None:
            _within("sparsity", self.sparsity, 0.0, 0.5)
        if self.max_loss is not None:
            _within("max-loss", self.max_loss, 0.0, 1e12)
        if self.speedup is not None and self.times is None:
            raise RecipeError(
                f"speedup | is '{self.speedup}'; expected a number of 1 or more, as in 1.25x"
            )
        by_time = [name for name in given if name != "sparsity"]
        if by_time and self.lowering != "auto":
            raise RecipeError(
                f"lowering | is '{self.lowering}', and a budget of time or loss chooses by "
                "what the planner would do; leave it at auto"
            )
        if by_time and self.target is None:
            raise RecipeError(
                f"{by_time[0].replace('_', '-')} | counts predicted time, and no target is "
                "given; add --target, as in a100-bf16"
            )

    @property
    def times(self) -> float | None:
        """`speedup` as a number; None if it is none, or not one of 1 or more."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?)x?", self.speedup or "")
        times = None if found is None else float(found[1])
        return times if times is not None and times >= 1 else None

    @property
    def profile(self) -> tuple[tuple[int, float], ...]:
        """`tokens` as pairs of a count and its share; shares sum to 1.

        Raises:
            RecipeError: if an entry is no count of tokens, or has no share above 0.
        """
        pairs = [_tokens(entry) for entry in self.tokens]
        total = sum(share for _, share in pairs)
        if not pairs or len({count for count, _ in pairs}) < len(pairs):
            raise RecipeError(f"tokens | are {self.tokens}; expected one or more, each once")
        return tuple((count, share / total) for count, share in pairs)


@dataclass(frozen=True)
class LearnRecipe:
    """How masks are made.

    Options that are None take the method's own value, see `learn/settings.py`.

    Attributes:
        method: `magnitude`, `wanda` and `sparsegpt` rank weights from one pass over a text,
            `descent` improves Wanda's patterns until what they lose cancels out best;
            `topk-ste`, `maskllm`, `patch-tile`, `patch-joint` and `leap` learn, `leap`
            without any pattern.
        structure: of one-shot masks: `2:4` in sparse tiles, or `unstructured`, zeros
            anywhere, each layer of one sparsity; dense to every kernel, a baseline.
        update: of `sparsegpt`: move the weights that stay so that they make up for those
            that go; the new weights are a checkpoint, the masks belong to it.
        select: what ranks tiles: `fisher`, sum of g^2 w^2 over the weights that would go;
            `error`, the sum of the prior's own squared scores; `learned`, a logit a tile.
            None is `learned` for `patch-tile` and `patch-joint`, else `fisher`.
        tile: `RxC`, `band:R`, `column:C` or `weight`.
        tie: `mlp`, gate and up by rows and down by columns share one choice for each block
            of the inner axis; `heads`, q, k, v by rows and o by columns share one for each
            key-value head. Other weights keep `tile`.
        tie_block: inner features of an `mlp` block.
        sparsity: zeros over all weights of the pruned linears, 0 to 0.5, or to 1 where zeros
            may be anywhere; several, as in `0.25,0.35`, give a file each; learning aims at
            the largest.
        samples: calibration windows.
        window: tokens in a window.
        seed: of the order of the text, of the noise and of random starts.
        include: globs or `re:` patterns of weights to prune; empty takes every linear.
        ignore: globs or `re:` patterns of weights to leave dense.
        prior: the one-shot method that learning starts from, and that `patch-tile` keeps.
        tile_start: where the logits of learned tiles start: at what going 2:4 costs by
            `fisher`, or at `random`.
        steps: of learning.
        batch: windows in a forward pass.
        accumulate: forward passes in a step.
        lr: peak learning rate of Adam.
        distill: learn from the dense model's predictions in place of the text's next tokens.
        density_weight: weight of |density - (1 - sparsity)|, where tiles are learned.
        norm_weight: weight of the term that keeps large weights.
        norm_term: `paper`, squared norms over all weights; `code`, the sum of the weights'
            norms, fading out, as PATCH's authors run it.
        precision: of the forward and backward pass; logits and Adam stay fp32.
        recompute: recompute activations in the backward pass, where the model has blocks that
            can: less memory, more time.
        holdout: windows never learned from, to judge by at every checkpoint.
        checkpoint_every: steps between checkpoints.
    """

    method: Method = "wanda"
    structure: Literal["2:4", "unstructured"] = "2:4"
    update: bool = False
    select: Selection | None = None
    tile: str = "128x128"
    tie: tuple[Tie, ...] = ()
    tie_block: int = 64
    sparsity: tuple[float, ...] = (0.25,)
    samples: int = 16
    window: int = 512
    seed: int = 0
    include: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    prior: OneShot = "wanda"
    tile_start: Literal["fisher", "random"] = "fisher"
    steps: int = 200
    batch: int = 1
    accumulate: int = 1
    lr: float | None = None
    distill: bool = True
    density_weight: float | None = None
    norm_weight: float | None = None
    norm_term: Literal["paper", "code"] = "paper"
    precision: Literal["fp32", "bf16"] = "fp32"
    recompute: bool = False
    holdout: int = 4
    checkpoint_every: int = 50

    def __post_init__(self) -> None:
        _check_kinds(self)
        if not self.sparsity:
            raise RecipeError("sparsity | is empty; expected a number from 0 to 0.5")
        top = 1.0 if self.free else 0.5
        for sparsity in self.sparsity:
            _within("sparsity", sparsity, 0.0, top)
        for name in ("samples", "steps", "batch", "accumulate", "checkpoint_every"):
            _within(name, getattr(self, name), 1, 1_000_000)
        _within("window", self.window, 2, 1_000_000)
        _within("holdout", self.holdout, 0, 1_000_000)
        for name in ("lr", "density_weight", "norm_weight"):
            if getattr(self, name) is not None:
                _within(name, getattr(self, name), 0.0, 1e6)
        self._check_selection()
        self._check_structure()
        self._check_update()

    def _check_selection(self) -> None:
        wrong = {
            "magnitude": ("learned",),
            "wanda": ("learned",),
            "sparsegpt": ("learned",),
            "descent": ("learned",),
            "patch-tile": ("fisher", "error"),
            "patch-joint": ("fisher", "error"),
        }.get(self.method, ())
        if self.select in wrong:
            raise RecipeError(
                f"select | is {self.select!r}, which method '{self.method}' cannot do; "
                "leave it out, or choose another method"
            )

    def _check_structure(self) -> None:
        if self.structure == "2:4":
            return
        if self.learns and not self.free:
            raise RecipeError(
                f"structure | is 'unstructured', and method '{self.method}' learns 2:4 tiles; "
                f"expected leap or one of {', '.join(get_args(OneShot))}"
            )
        if self.method == "descent":
            raise RecipeError(
                "structure | is 'unstructured', and method 'descent' looks for 2:4 patterns; "
                "choose wanda or sparsegpt"
            )
        given = [name for name in ("select", "tie") if getattr(self, name)]
        if given:
            raise RecipeError(
                f"{given[0]} | is {getattr(self, given[0])!r}, and unstructured masks have no "
                "tiles; leave it out, or choose --structure 2:4"
            )

    def _check_update(self) -> None:
        if not self.update:
            return
        if self.method != "sparsegpt":
            raise RecipeError(
                f"update | is asked of method '{self.method}', which leaves weights as they "
                "are; choose --method sparsegpt, or leave it out"
            )
        if len(self.sparsity) > 1:
            raise RecipeError(
                f"sparsity | is {self.sparsity}, and --update makes new weights for each; "
                "expected one, run once for each"
            )

    @property
    def free(self) -> bool:
        """Zeros may be anywhere: there is neither a pattern nor a tile."""
        return self.method == "leap" or (self.structure == "unstructured" and not self.learns)

    @property
    def learns(self) -> bool:
        """The method learns; a one-shot method only ranks."""
        return self.method not in get_args(OneShot)

    @property
    def aim(self) -> float:
        """The sparsity that learning aims at: less is cut from it, never more."""
        return max(self.sparsity)

    @property
    def ranking(self) -> Selection:
        """What ranks tiles: `select`, or the method's own choice."""
        if self.select is not None:
            return self.select
        return "learned" if self.method.startswith("patch-") else "fisher"

    @property
    def saliency(self) -> str:
        """The one-shot method that ranks weights, or that learning starts from."""
        return self.prior if self.learns else self.method


@dataclass(frozen=True)
class ExportRecipe:
    """How a model becomes ONNX.

    Attributes:
        dtype: element type of weights and activations.
        opset: of the default domain.
    """

    dtype: FloatType = "fp32"
    opset: int = 20

    def __post_init__(self) -> None:
        _check_kinds(self)


@dataclass(frozen=True)
class VerifyRecipe:
    """What counts as equal.

    Attributes:
        atol: largest absolute difference of any output element; None picks one from the
            element type: 1e-2 for fp32, 0.5 for fp16 and bf16 (logits reach 20 to 40), and for
            a model that was cast to one of them.
        rtol: largest relative Frobenius error; None picks 1e-4, or 2e-2 for fp16 and bf16.
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
        _within("window", self.window, 2, 1_000_000)
        _within("tokens", self.tokens, self.window, 1_000_000_000)


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
        _check_kinds(self)
        _within("timeout", self.timeout, 1e-3, 1e9)
        if self.optimization_level is not None:
            _within("optimization-level", self.optimization_level, 0, 5)
        if self.workspace is not None:
            _within("workspace", self.workspace, 1, 1_000_000_000)
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
    """

    quantize: Literal["int8", "fp8"] | None = None
    calibration_tokens: int = 1024
    calibration_window: int = 128

    def __post_init__(self) -> None:
        _check_kinds(self)
        _within("calibration-window", self.calibration_window, 2, 1_000_000)
        _within("calibration-tokens", self.calibration_tokens, self.calibration_window, 1e9)


@dataclass(frozen=True)
class BenchRecipe:
    """How latencies are measured.

    Attributes:
        runtime: what runs the models: ONNX Runtime on its `ort-cpu`, `ort-cuda`,
            `ort-tensorrt` or `ort-rtx` provider.
        tokens: of a sequence; several, as in `1,128`, are measured one after the other.
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
        _check_kinds(self)
        if not self.tokens:
            raise RecipeError("tokens | is empty; expected numbers from 1, as in 1,128")
        for tokens in self.tokens:
            _within("tokens", tokens, 1, 1_000_000)
        for name in ("batch", "runs"):
            _within(name, getattr(self, name), 1, 1_000_000)
        # An interval of fewer samples says nothing.
        _within("rounds", self.rounds, 5, 1_000_000)
        for name in ("warmup", "threads"):
            _within(name, getattr(self, name), 0, 1_000_000)
        _within("confidence", self.confidence, 0.5, 0.999)
        _within("timeout", self.timeout, 1e-3, 1e9)


def _tokens(entry: str) -> tuple[int, float]:
    found = re.fullmatch(r"([1-9]\d{0,7})(?::(\d+(?:\.\d+)?))?", entry)
    share = float((found and found[2]) or 1.0)
    if found is None or share <= 0:
        raise RecipeError(
            f"tokens | has '{entry}'; expected a number of tokens and its share of the time, "
            "as in 16:0.9,2048:0.1"
        )
    return int(found[1]), share


def _check_kinds(recipe: Any) -> None:
    """Checks words against their choices, and lists: a str is no list of patterns."""
    hints = get_type_hints(type(recipe))
    for field in fields(recipe):
        name, value, kind = field.name, getattr(recipe, field.name), hints[field.name]
        several = get_origin(kind) is tuple
        if several and not isinstance(value, tuple):
            raise RecipeError(f"{name} | is {value!r}; expected a tuple")
        choices = _choices(kind)
        for word in value if several else (value,):
            if choices and word not in choices:
                expected = ", ".join(str(choice) for choice in choices if choice is not None)
                raise RecipeError(f"{name} | is {word!r}; expected one of {expected}")


def _choices(kind: Any) -> tuple[Any, ...]:
    """Returns what a Literal, or one or None, or each of several can be; else nothing."""
    parts = (kind,) if get_origin(kind) is Literal else get_args(kind)
    words = [word for part in parts if get_origin(part) is Literal for word in get_args(part)]
    return (*words, None) if words and type(None) in parts else tuple(words)


def _within(name: str, value: float, low: float, high: float) -> None:
    # Written so that NaN fails too.
    if not low <= value <= high:
        raise RecipeError(f"{name} | is {value}; expected a number from {low} to {high}")
