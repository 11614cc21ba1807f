"""How masks become pieces."""

import re
from dataclasses import dataclass
from typing import Literal

from patch_compile.errors import RecipeError
from patch_compile.recipe.checks import check_kinds, within

__all__ = ["BlockLowering", "CastType", "CompileRecipe", "GroupLowering", "Lowering"]

CastType = Literal["fp16", "bf16"]
BlockLowering = Literal["branches", "sink-order"]
GroupLowering = Literal[BlockLowering, "merge"]
# The one list of them: the plan and the choice on the command line take it from here.
Lowering = Literal[
    "dense", "whole", "columns", "reduction", "cover", "residual", BlockLowering
]
LoweringChoice = Literal["auto", Lowering, "merge"]

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


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
            0.5, is left; with a target, this share where the plan makes time of it.
        speedup: with a target, make tiles dense, at the least loss by score, while the masked
            weights are predicted this many times as fast as dense, as in `1.25x`.
        max_loss: with a target, take the tiles that save most time while their scores, the
            loss increases that `learn` predicts, sum to no more than this.
        regroup: cut free tile maps anew into whole bands or strips, of as many 2:4 tiles, by
            their scores, where that makes the plan cheaper. Lossy: tiles that were dense lose
            the smaller two of every four weights; the report says what it cost.
        max_shard: write the weights to several files of at most this size, as in `2GB` or
            `500MB`, powers of ten; a larger weight has a file of its own. None writes one.
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
    regroup: bool = False
    max_shard: str | None = None

    def __post_init__(self) -> None:
        check_kinds(self)
        within("min-gain", self.min_gain, 0.0, 1.0)
        _ = self.profile, self.shard_bytes
        if self.regroup and self.dtype is not None:
            raise RecipeError(
                f"regroup | chooses weights by size, and dtype {self.dtype} changes them; "
                "export the model in that type"
            )
        self._check_budget()

    def _check_budget(self) -> None:
        given = [
            n for n in ("sparsity", "speedup", "max_loss") if getattr(self, n) is not None
        ]
        if len(given) > 1:
            raise RecipeError(f"{given[0]} | is given with {given[1]}; choose one budget")
        if self.sparsity is not None:
            within("sparsity", self.sparsity, 0.0, 0.5)
        if self.max_loss is not None:
            within("max-loss", self.max_loss, 0.0, 1e12)
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
    def budgeted(self) -> bool:
        """Whether tiles are to be made dense until a budget is met."""
        return any(x is not None for x in (self.sparsity, self.speedup, self.max_loss))

    @property
    def times(self) -> float | None:
        """`speedup` as a number; None if it is none, or not one of 1 or more."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?)x?", self.speedup or "")
        times = None if found is None else float(found[1])
        return times if times is not None and times >= 1 else None

    @property
    def shard_bytes(self) -> int | None:
        """`max_shard` as a number of bytes.

        Raises:
            RecipeError: if it is no size.
        """
        if self.max_shard is None:
            return None
        found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMG]?)B", self.max_shard)
        size = 0 if found is None else int(float(found[1]) * _UNITS[found[2]])
        if not size:
            raise RecipeError(
                f"max-shard | is '{self.max_shard}'; expected a size, as in 2GB or 500MB"
            )
        return size

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


def _tokens(entry: str) -> tuple[int, float]:
    found = re.fullmatch(r"([1-9]\d{0,7})(?::(\d+(?:\.\d+)?))?", entry)
    share = float((found and found[2]) or 1.0)
    if found is None or share <= 0:
        raise RecipeError(
            f"tokens | has '{entry}'; expected a number of tokens and its share of the time, "
            "as in 16:0.9,2048:0.1"
        )
    return int(found[1]), share
