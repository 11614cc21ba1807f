"""Predicted time as what a plan costs.

N: out features. K: in features.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from patch_compile.recipe import CompileRecipe
from patch_compile.report import PredictedTime
from patch_compile.targets.target import LAUNCH_GAP_US, Target, parse
from patch_compile.tiles.operations import Operations, of_pieces, products
from patch_compile.tiles.plan import Piece, WeightPlan

__all__ = [
    "TimeCost",
    "cost_of",
    "dense_us",
    "predicted_times",
    "shared_times",
    "time_cost",
]

# Where a 2:4 product is told to be faster than a dense one: beyond most errors of prediction.
_CLEARLY = 0.97
_TOKENS = tuple(2**power for power in range(4, 16))


@dataclass(frozen=True)
class TimeCost:
    """Shares of the dense model's time, for a profile of tokens; see `time_cost`.

    Attributes:
        target: predicts microseconds.
        rates: pairs of a number of tokens a run, and the price of a microsecond of such runs.
    """

    target: Target
    rates: tuple[tuple[int, float], ...]

    @property
    def unit(self) -> str:
        """What is saved, in words."""
        return f"the predicted time on {self.target.name}"

    def product(self, n: int, k: int, *, sparse24: bool) -> float:
        """Returns the price of one product and of its launch."""
        return sum(
            rate * _product_us(self.target, tokens, n, k, sparse24)
            for tokens, rate in self.rates
        )

    def moved(self, features: int) -> float:
        """Returns the price of one Concat, Gather or Slice."""
        return sum(rate * self.target.moved_us(m * features) for m, rate in self.rates)

    def added(self, features: int) -> float:
        """Returns the price of one Add."""
        return sum(rate * self.target.added_us(m * features) for m, rate in self.rates)

    def refusal(self, shape: tuple[int, int], pieces: tuple[Piece, ...]) -> str:
        """Says which of the three causes it is: too few tokens, joining, narrow pieces."""
        n, k = shape
        dense = self.product(n, k, sparse24=False)
        if self.product(n, k, sparse24=True) > _CLEARLY * dense:
            counts = ", ".join(f"{tokens:,}" for tokens, _ in self.rates)
            return (
                f"2:4 is not faster for {n} x {k} at {counts} tokens; {self._pays_from(n, k)}"
            )
        alone = sum(self.product(*p.shape, sparse24=p.role == "sparse24") for p in pieces)
        if alone < _CLEARLY * dense:
            return "joining the pieces takes what they save"
        narrow = ", ".join(f"{p.shape[0]} x {p.shape[1]}" for p in pieces)
        return f"pieces of {narrow} are too small to be as efficient as the whole"

    def _pays_from(self, n: int, k: int) -> str:
        for tokens in _TOKENS:
            there = self.at(tokens)
            dense, sparse = (there.product(n, k, sparse24=s) for s in (False, True))
            if sparse < _CLEARLY * dense:
                return f"it is from about {tokens:,}"
        return f"it never is up to {_TOKENS[-1]:,}"

    def at(self, tokens: int) -> "TimeCost":
        """The same in microseconds of one run of so many tokens."""
        return TimeCost(self.target, ((tokens, 1.0),))


def time_cost(
    target: Target,
    profile: Iterable[tuple[int, float]],
    shapes: Iterable[tuple[int, int]],
) -> TimeCost:
    """Prices such that all dense weights together cost 1.

    Args:
        target: predicts microseconds.
        profile: numbers of tokens a run, and the share of the dense model's time that such
            runs take; shares sum to 1.
        shapes: (N, K) of every weight of the model that may be cut.
    """
    weights = list(shapes)
    rates = [(m, share / dense_us(target, m, weights)) for m, share in profile]
    return TimeCost(target, tuple(rates))


def cost_of(recipe: CompileRecipe, shapes: Iterable[tuple[int, int]]) -> TimeCost | None:
    """The recipe's cost for masked weights of these shapes; None without a target."""
    if recipe.target is None:
        return None
    return time_cost(parse(recipe.target), recipe.profile, shapes)


def predicted_times(
    shape: tuple[int, int], pieces: tuple[Piece, ...], cost: TimeCost
) -> tuple[PredictedTime, ...]:
    """Microseconds of one weight of `shape` (N, K), dense and lowered alone, by tokens."""
    bill = of_pieces(shape, pieces)
    return tuple(
        _predicted(shape, bill, cost.at(tokens), tokens, 1.0) for tokens, _ in cost.rates
    )


def shared_times(
    plans: Sequence[WeightPlan], bill: Operations, cost: TimeCost
) -> dict[str, tuple[PredictedTime, ...]]:
    """Microseconds of weights that are lowered together, by weight and tokens.

    What the group takes is shared out by what each weight's own pieces would take.

    Args:
        plans: of the group's weights.
        bill: of the whole group.
        cost: predicts.
    """
    times: dict[str, list[PredictedTime]] = {plan.weight: [] for plan in plans}
    for tokens, _ in cost.rates:
        there = cost.at(tokens)
        own = [products(plan.pieces).price(there) for plan in plans]
        for plan, part in zip(plans, own, strict=True):
            share = part / sum(own)
            times[plan.weight].append(_predicted(plan.shape, bill, there, tokens, share))
    return {name: tuple(entries) for name, entries in times.items()}


def _predicted(
    shape: tuple[int, int], bill: Operations, cost: TimeCost, tokens: int, share: float
) -> PredictedTime:
    parts: dict[str, float] = {"dense": 0.0, "sparse24": 0.0}
    for n, k, role in bill.products:
        parts[role] += share * cost.product(n, k, sparse24=role == "sparse24")
    after = share * bill.price(cost)
    parts["joining"] = max(0.0, after - sum(parts.values()))
    return PredictedTime(tokens, cost.product(*shape, sparse24=False), after, parts)


def dense_us(target: Target, tokens: int, shapes: Iterable[tuple[int, int]]) -> float:
    """Predicted microseconds of dense products, one a weight; above 0 even of none."""
    total = sum(_product_us(target, tokens, n, k, False) for n, k in shapes)
    return total or LAUNCH_GAP_US


# Models repeat their shapes: a layer's are predicted once.
@cache
def _product_us(target: Target, tokens: int, n: int, k: int, sparse24: bool) -> float:
    warm = target.gemm_us(tokens, n, k, sparse24=sparse24)
    return LAUNCH_GAP_US + max(warm, target.weight_us(n, k, sparse24=sparse24))
