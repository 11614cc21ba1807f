"""Puts the channels of a model into the order in which 2:4 costs least.

N: out features. K: in features. R: rows of the weights that read an axis.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from patch_compile._require import require
from patch_compile.learn._progress import Progress, tell
from patch_compile.learn.axes import Axis, find_axes
from patch_compile.learn.calibrate import calibrate
from patch_compile.learn.channel_order import (
    exchange_channels,
    lost_of_groups,
    lost_of_rows,
)
from patch_compile.learn.linears import Linear
from patch_compile.learn.model import LoadedModel, check_place, save_checkpoint
from patch_compile.learn.text import windows
from patch_compile.learn.unchanged import Answers
from patch_compile.recipe import PermuteRecipe

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["RECORD", "Permuted", "Reordered", "permute_model"]

# Beside the checkpoint: which channel went where.
RECORD = "permutation.json"

# Rows that an order is found for; more of them would say the same.
_ROWS = 65_536


@dataclass(frozen=True, eq=False)
class Reordered:
    """One axis in its new order.

    Attributes:
        kind: `residual`, `mlp` or `heads`.
        name: of the module whose inner axis it is.
        order: int64 (parts, channels): the old numbers of the channels in their new order, for
            each head or for the whole axis.
        before: what 2:4 in all the weights that read the axis would cost, in the loss's own
            unit up to a factor (second order, diagonal).
        after: the same in the new order.
    """

    kind: str
    name: str
    order: NDArray[np.int64]
    before: float
    after: float


@dataclass(frozen=True, eq=False)
class Permuted:
    """What was done to a model.

    Attributes:
        axes: in the order in which they were found.
        difference: the largest difference of a logit, on a window of the text.
        largest: the largest logit there.
    """

    axes: tuple[Reordered, ...]
    difference: float
    largest: float


def permute_model(
    model: LoadedModel,
    sources: Sequence[str | Path],
    recipe: PermuteRecipe,
    folder: Path,
    progress: Progress | None = None,
) -> Permuted:
    """Reorders the channels of a model, and writes it as a checkpoint with its record.

    The model computes what it did. Groups of four are chosen so that 2:4 loses least, then put
    in the order of what they lose, so that tiles are rather of one kind.

    Args:
        model: changed: its channels move, and its weights get the element type they had in
            the checkpoint, if all of them fit it.
        sources: texts to calibrate on.
        recipe: see `PermuteRecipe`.
        folder: for the checkpoint.
        progress: called with (done, total, what).

    Raises:
        ModelError: if the model has not the axes, or would compute something else, or the
            folder cannot be written or holds another model.
        RecipeError: if a text is missing, unreadable or too short.
    """
    axes = find_axes(model.module, recipe.axes)
    text = windows(sources, model.tokenizer, recipe.samples, recipe.window, recipe.seed)
    check_place(folder, RECORD)
    answers = Answers.of(model, text[0])
    answers.try_axes(axes, np.random.default_rng(recipe.seed))
    costs = _Costs.of(model, axes, text, progress)
    rng = np.random.default_rng(recipe.seed)
    rounds = _rounds(axes, recipe.rounds, progress)
    made = [_reorder(axis, costs, rounds, rng) for axis in axes]
    permuted = Permuted(tuple(made), answers.difference(), answers.largest)
    save_checkpoint(model.narrowed(), folder, {RECORD: _record(permuted, recipe)})
    return permuted


def _rounds(
    axes: Sequence[Axis], rounds: int, progress: Progress | None
) -> Callable[[], Iterator[None]]:
    """Returns what counts the rounds of one part, and tells how many of all are done."""
    total, done = rounds * sum(axis.parts for axis in axes), count()

    def of_part() -> Iterator[None]:
        for _ in range(rounds):
            tell(progress, next(done), total, "ordering channels")
            yield

    return of_part


@dataclass(frozen=True, eq=False)
class _Costs:
    """What it costs to zero a weight: w_ij^2 E[x_j^2] E[d_i^2].

    That is the diagonal of the Fisher information if inputs x and gradients d of outputs do
    not depend on each other, as K-FAC (arXiv 1503.05671) has it: N + K numbers a weight, which
    a short text tells better than N x K.

    Attributes:
        inputs: float32 (K,) by weight, the sum over tokens of x^2.
        outputs: float32 (N,) by weight, so that outputs x inputs sums to the Fisher's rows.
    """

    inputs: dict[str, "Tensor"]
    outputs: dict[str, "Tensor"]

    @classmethod
    def of(
        cls,
        model: LoadedModel,
        axes: Sequence[Axis],
        text: NDArray[np.int64],
        progress: Progress | None,
    ) -> "_Costs":
        linears = {each.name: each for axis in axes for each in (*axis.readers, *axis.writers)}
        found = calibrate(
            model.module,
            linears,
            text,
            moments=True,
            fisher_rows=True,
            mask_token=model.mask_token,
            progress=progress,
        )
        torch = require("torch", "learn")
        costs = cls({}, {})
        for name, moment in found.moments.items():
            outputs = found.fisher_rows[name] / moment.sum()
            costs.inputs[name] = torch.from_numpy(moment).float()
            costs.outputs[name] = torch.from_numpy(outputs).float()
        return costs

    def of_weight(self, linear: Linear, rows: NDArray[np.int64] | slice) -> "Tensor":
        """Returns the costs of some rows of a weight, float32 (R, K)."""
        matrix = linear.matrix(linear.weight.detach())[rows].float()
        inputs, outputs = self.inputs[linear.name], self.outputs[linear.name][rows]
        return matrix.square() * inputs * outputs[:, None]

    def apply(self, axis: Axis, order: NDArray[np.int64]) -> None:
        """Moves what is known along with the channels."""
        for reader in axis.readers:
            self.inputs[reader.name] = self.inputs[reader.name][axis.inner(order)]
        for writer in axis.writers:
            index = axis.outer(order, writer.shape[0])
            self.outputs[writer.name] = self.outputs[writer.name][index]


def _reorder(
    axis: Axis, costs: _Costs, rounds: Callable[[], Iterator[None]], rng: np.random.Generator
) -> Reordered:
    cost, share = _of_readers(axis, costs, rng)
    beside = _of_writers(axis, costs) / share
    parts = [cost[:, part].flatten(0, 1) for part in range(axis.parts)]
    order = np.stack(
        [
            _ordered(mine, other, rounds(), rng)
            for mine, other in zip(parts, beside, strict=True)
        ]
    )
    stay = np.tile(np.arange(axis.width), (axis.parts, 1))
    before, after = (share * _lost(parts, now) for now in (stay, order))
    axis.apply(order)
    costs.apply(axis, order)
    return Reordered(axis.kind, axis.name, order, before, after)


def _ordered(
    cost: "Tensor",
    beside: NDArray[np.float64],
    rounds: Iterable[None],
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Orders the channels of a part: groups that lose least, the dearest of them first.

    Args:
        cost: float32 (R, width), of the weights that read the channels.
        beside: float64 (width,), what the weights that make each channel would lose.
        rounds: of exchange.
        rng: draws them.
    """
    order = np.arange(cost.shape[1], dtype=np.int64)
    for _ in rounds:
        order = exchange_channels(cost, order, rng)
    groups = order.reshape(-1, 4)
    lost = lost_of_groups(cost[:, order]) + beside[groups].sum(1)
    ordered: NDArray[np.int64] = groups[np.argsort(-lost, kind="stable")].ravel()
    return ordered


def _lost(costs: Sequence["Tensor"], order: NDArray[np.int64]) -> float:
    """Sums what 2:4 loses in all parts, each float32 (R, width)."""
    pairs = zip(costs, order, strict=True)
    return sum(float(lost_of_groups(cost[:, now]).sum()) for cost, now in pairs)


def _of_readers(axis: Axis, costs: _Costs, rng: np.random.Generator) -> tuple["Tensor", float]:
    """Returns costs, float32 (R, parts, repeat, width), and how many rows each stands for."""
    torch = require("torch", "learn")
    sizes = [reader.shape[0] for reader in axis.readers]
    drawn = np.sort(rng.permutation(sum(sizes))[:_ROWS])
    ends = np.cumsum(sizes)
    parts = [
        costs.of_weight(reader, drawn[(drawn >= end - size) & (drawn < end)] - (end - size))
        for reader, size, end in zip(axis.readers, sizes, ends, strict=True)
    ]
    cost = torch.cat(parts).unflatten(1, (axis.parts, axis.repeat, axis.width))
    return cost, sum(sizes) / len(drawn)


def _of_writers(axis: Axis, costs: _Costs) -> NDArray[np.float64]:
    """Returns what each channel's rows of the writers would lose, float64 (parts, width)."""
    size = axis.parts * axis.width
    mine = slice(axis.first, axis.first + size)
    lost = np.zeros(size)
    for writer in axis.writers:
        # Others stay dense, see `prunable`.
        if writer.shape[1] % 4 == 0:
            lost += lost_of_rows(costs.of_weight(writer, mine))
    return lost.reshape(axis.parts, axis.width)


def _record(permuted: Permuted, recipe: PermuteRecipe) -> str:
    axes: list[dict[str, Any]] = [
        {**asdict(axis), "order": axis.order.tolist()} for axis in permuted.axes
    ]
    made = {"recipe": asdict(recipe), "axes": axes}
    return json.dumps({"format": "patch-compile permutation 1", **made}) + "\n"
