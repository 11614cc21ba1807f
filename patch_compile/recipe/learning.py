"""How masks are made."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from patch_compile.errors import RecipeError
from patch_compile.recipe.checks import check_kinds, within
from patch_compile.recipe.compiling import CompileRecipe
from patch_compile.recipe.promise import promise_of

__all__ = ["LearnRecipe"]

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


@dataclass(frozen=True)
class LearnRecipe:
    """How masks are made.

    Options that are None take the method's own value, see `learn/training/settings.py`.

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
            By default `learned` for `patch-tile` and `patch-joint`, else `fisher`.
        tile: how each weight is cut into tiles that are dense or 2:4: `RxC`, R out features
            by C in features; `band:R`, R by all; `column:C`, all by C; `weight`, all of it,
            so that whole layers are chosen. Free `RxC` maps rarely leave a piece that is
            wholly 2:4, as kernels want it; the others do.
        tie: `mlp`, gate and up by rows and down by columns share one choice for each block
            of the inner axis; `heads`, q, k, v by rows and o by columns share one for each
            key-value head. Other weights keep `tile`.
        tie_block: inner features of an `mlp` block.
        sparsity: zeros over all weights of the pruned linears, 0 to 0.5, or to 1 where zeros
            may be anywhere; several, as in `0.25,0.35`, give a file each; learning aims at
            the largest.
        budget: in place of a sparsity, the predicted time of the pruned weights on a GPU:
            `time:1.25x@a100-bf16:16` is 1.25 times as fast as dense at 16 tokens, and
            `...:16:0.9,2048:0.1` says which share of the time runs of so many tokens take.
        samples: windows of text that one-shot methods, and starts, take statistics from.
        window: tokens in a window.
        seed: of the order of the text, of the noise and of random starts.
        include: globs or `re:` patterns of weights to prune, as in `*.mlp.*`; the sparsity
            is over these. Empty takes every linear.
        ignore: globs or `re:` patterns of weights to leave dense.
        prior: the one-shot method that learning starts from, and that `patch-tile` keeps.
        tile_start: where the logits of learned tiles start: at what going 2:4 costs by
            `fisher`, or at `random`.
        steps: of learning.
        batch: windows in a forward pass.
        accumulate: forward passes in a step.
        lr: peak learning rate of Adam; by default the method's own.
        distill: learn from the dense model's predictions in place of the text's next tokens.
        density_weight: weight of |density - (1 - sparsity)|, where tiles are learned; by
            default the method's own. With a `budget` density is a share of the dense time.
        norm_weight: weight of the term that keeps large weights; by default the method's own.
        norm_term: `code`, the sum of the weights' norms, fading out, as PATCH's authors run
            it; `paper`, squared norms over all weights, far worse with their own weight.
        precision: of the forward and backward pass; logits and Adam stay fp32. `bf16` is slow
            on processors that have no instructions for it, and that is told.
        recompute: recompute activations in the backward pass, where the model has blocks that
            can: less memory, more time.
        shard: of several processes: `none`, each holds all weights of the model; `full`, each
            keeps its part of them while it learns, and blocks are gathered as they are read
            (FSDP2). Logits and Adam stay whole in each. With `recompute` no process holds
            more than a block and the ends of the model besides.
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
    budget: str | None = None
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
    norm_term: Literal["paper", "code"] = "code"
    precision: Literal["fp32", "bf16"] = "fp32"
    recompute: bool = False
    shard: Literal["none", "full"] = "none"
    holdout: int = 4
    checkpoint_every: int = 50

    def __post_init__(self) -> None:
        check_kinds(self)
        if not self.sparsity:
            raise RecipeError("sparsity | is empty; expected a number from 0 to 0.5")
        top = 1.0 if self.free else 0.5
        for sparsity in self.sparsity:
            within("sparsity", sparsity, 0.0, top)
        for name in ("samples", "steps", "batch", "accumulate", "checkpoint_every"):
            within(name, getattr(self, name), 1, 1_000_000)
        within("window", self.window, 2, 1_000_000)
        within("seed", self.seed, 0, 2**63 - 1)
        within("holdout", self.holdout, 0, 1_000_000)
        for name in ("lr", "density_weight", "norm_weight"):
            if getattr(self, name) is not None:
                within(name, getattr(self, name), 0.0, 1e6)
        self._check_selection()
        self._check_structure()
        self._check_update()
        self._check_budget()
        self._check_shard()

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
        if self.method == "leap" and self.prior == "descent":
            raise RecipeError(
                "prior | is 'descent', which looks for 2:4 patterns, and leap has none; "
                "choose magnitude, wanda or sparsegpt"
            )
        if self.structure == "2:4" and not self.free:
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
            other = "another method" if self.method == "leap" else "--structure 2:4"
            raise RecipeError(
                f"{given[0]} | is {getattr(self, given[0])!r}, and unstructured masks have no "
                f"tiles; leave it out, or choose {other}"
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

    def _check_budget(self) -> None:
        if self.promise is None:
            return
        if self.sparsity != (0.25,):
            raise RecipeError(f"budget | is given with sparsity {self.sparsity}; choose one")
        if self.free or self.update:
            what = "zeros anywhere save no time" if self.free else "--update needs a sparsity"
            raise RecipeError(f"budget | is '{self.budget}', and {what}; leave it out")

    def _check_shard(self) -> None:
        if self.shard == "full" and not self.learns:
            raise RecipeError(
                f"shard | is 'full', and method '{self.method}' takes no steps that weights "
                "could be spread for; leave it out, or choose a method that learns"
            )

    @property
    def promise(self) -> CompileRecipe | None:
        """`budget` as a compiler is asked for it; None without."""
        return None if self.budget is None else promise_of(self.budget)

    @property
    def free(self) -> bool:
        """Zeros may be anywhere: there is neither a pattern nor a tile."""
        return self.method == "leap" or (self.structure == "unstructured" and not self.learns)

    def check_one_shot(self) -> None:
        """Refuses a recipe that one calibration is not enough for.

        Raises:
            RecipeError: if it learns, or moves weights.
        """
        if self.learns or self.update:
            what = "--update moves weights" if self.update else f"'{self.method}' learns"
            raise RecipeError(
                f"method | {what}, and one-shot masks were asked for; use learn_candidates, "
                f"or choose of {', '.join(get_args(OneShot))}"
            )

    def check_checkpoint(self, folder: str | Path | None) -> None:
        """Refuses new weights without a folder for them, and a folder without new weights.

        Raises:
            RecipeError: if one of the two is lacking.
        """
        if self.update == (folder is not None):
            return
        if self.update:
            problem = "is missing, and --update makes new weights; give a folder for them"
        else:
            problem = (
                f"is '{folder}', and no weight changes; leave it out, or --update weights"
            )
        raise RecipeError(f"checkpoint | {problem}")

    @property
    def learns(self) -> bool:
        """The method learns; a one-shot method only ranks."""
        return self.method not in get_args(OneShot)

    @property
    def aim(self) -> float:
        """The sparsity that learning aims at: less is cut from it, never more."""
        return max(self.sparsity)

    @property
    def density(self) -> float:
        """What learning aims to leave: a share of the weights, or of the dense time."""
        if self.promise is None:
            return 1.0 - self.aim
        assert self.promise.times is not None
        return 1.0 / self.promise.times

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
