"""Errors planted in what learns, each caught by a test of its own."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.autograd.gradcheck import GradcheckError

from patch_compile.learn import calibrate, candidates, descent, obs, scores, update
from patch_compile.learn.training import start
from patch_compile.learn.training.gate import Gate, Pull
from patch_compile.learn.training.noise import Draw
from patch_compile.learn.training.objective import Penalties
from patch_compile.learn.training.patterns import FixedPattern, GumbelPattern, TopTwoPattern
from patch_compile.learn.training.product import _Part, _Product
from patch_compile.tiles import budget
from tests.learn import (
    test_calibrate,
    test_descent,
    test_obs,
    test_scores,
    test_unstructured,
    test_update,
)
from tests.learn.tiny import random_ids, tiny_model, write_text
from tests.learn.training import (
    test_gate,
    test_gradcheck,
    test_objective,
    test_patterns,
    test_product,
    test_start,
)
from tests.tiles import test_budget, test_cut

Claim = Callable[[Path], None]
Mutant = tuple[Any, str, Any, Claim]


def _rng() -> np.random.Generator:
    return np.random.default_rng(0)


def _windows() -> Any:
    return random_ids((3, 12)).numpy()


# Gates


def _forgets_weight(self: Any, grad: Any) -> Any:
    return grad * (1 - self.dense)


def _forgets_tile(self: Any, grad: Any) -> Any:
    return grad * self.weight


def _forgets_slope(self: Any, density: Any, sums: Any) -> Any:
    return sums * density * (1 - density)


def _permutes_ties(self: Any, values: Any) -> Any:
    return values if self.index is None else values[self.index.roll(1, 0)]


def _pulls_apart(self: Pull, grad: Any, masked: Any) -> Any:
    return torch.add(grad, masked, alpha=self.norm)


def _past_the_mask(ctx: Any, *grads: Any) -> Any:
    return grads[0] @ ctx.saved_tensors[1], *_backward(ctx, *grads)[1:]


_backward = _Product.backward


def _forgets_mean(self: Any, grad: Any, kept: Any, annealed: Any) -> Any:
    places = grad.view(len(grad), -1, 4)
    pairs = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))
    direct = torch.stack([places[..., a] + places[..., b] for a, b in pairs], 1)
    return direct * kept * (annealed.scale / annealed.temperature)


def _steps_share_noise(self: Draw, name: str, device: Any) -> Any:
    return _generator(Draw(self.seed, 0, self.slot), name, device)


_generator = Draw.generator


def _noise_anew(self: Draw, name: str, device: Any) -> Any:
    generator = torch.Generator(device)
    generator.seed()
    return generator


def _one_of_four(self: Any, stored: Any) -> Any:
    return stored.argmax(1)[:, None, :].eq(torch.arange(4)[:, None]).transpose(1, 2).flatten(1)


def _share_of_one(self: Penalties, gates: Any, progress: float, share: float) -> float:
    return _apply(self, gates, progress, 1.0)


_apply = Penalties.apply

GATES: Mapping[str, Mutant] = {
    "straight-through gradient forgets W": (
        _Part, "share", _forgets_weight,
        lambda _: test_gate.test_top_two_hands_the_mask_s_gradient_straight_to_its_scores(),
    ),
    "pattern's gradient forgets 1 - T": (
        _Part, "share", _forgets_tile,
        lambda _: test_gradcheck.test_tiles_and_pattern_of_patch_joint("4x8", None),
    ),
    "tile's gradient forgets kappa / tau": (
        Gate, "tile_gradient", _forgets_slope,
        lambda _: test_gradcheck.test_tiles_over_a_pattern_that_stands(FixedPattern(), None),
    ),
    "softmax's gradient forgets its mean": (
        GumbelPattern, "gradient", _forgets_mean,
        lambda _: test_gradcheck.test_tiles_and_pattern_of_patch_joint("4x8", None),
    ),
    "index of a tie is permuted": (
        Gate, "_of_tiles", _permutes_ties,
        lambda _: (
            test_gate.test_tied_tiles_share_a_logit_its_noise_and_the_sum_of_their_gradients(
                FixedPattern()
            )
        ),
    ),
    "norm term drives large weights out": (
        Pull, "added", _pulls_apart,
        lambda _: test_gate.test_patch_tile_has_the_paper_s_gradients(),
    ),
    "input's gradient goes past the mask": (
        _Product, "backward", staticmethod(_past_the_mask),
        lambda _: test_product.test_values_and_gradients_are_those_of_a_linear_layer(True),
    ),
    "steps share their noise": (
        Draw, "generator", _steps_share_noise,
        lambda _: test_gate.test_every_draw_has_noise_of_its_own(),
    ),
    "backward draws another mask": (
        Draw, "generator", _noise_anew,
        lambda _: test_gate.test_patch_joint_has_the_paper_s_gradients("5x8"),
    ),
    "hard pattern is not that of the largest logit": (
        GumbelPattern, "hard", _one_of_four,
        lambda _: test_patterns.test_the_hard_pattern_is_that_of_the_largest_logit(),
    ),
    "penalties count whole in every pass of a step": (
        Penalties, "apply", _share_of_one,
        lambda _: test_objective.test_penalties_have_the_equations_values_and_gradients(
            "paper", 0.55
        ),
    ),
    "scores start without standardising": (
        TopTwoPattern, "start", lambda self, saliency, generator: saliency.log(),
        lambda _: test_patterns.test_standardising_forgets_the_size_of_a_group(),
    ),
}  # fmt: skip


# Budgets


def _ignores_gains(scores: Any, gains: Any, target: float) -> Any:
    worth = np.flatnonzero(gains > 0)
    order = worth[np.argsort(scores[worth], kind="stable")]
    chosen = np.zeros(gains.size, np.bool_)
    chosen[order[: budget._nearest(np.cumsum(gains[order]), target)]] = True
    return chosen


def _one_off(reached: Any, target: float) -> int:
    return min(_nearest(reached, target) + 1, reached.size)


_nearest = budget._nearest


def _regions_round_alone(areas: Any, sparsity: float, before: int) -> Any:
    return np.floor(sparsity * areas).astype(np.int64)


def _without_one_more(scores: Any, counts: Any) -> Any:
    return _without_lowest(scores, np.minimum(counts + 1, scores.size // len(counts)))


_without_lowest = candidates._without_lowest


def _exact_budget(no_text: Path) -> None:
    test_unstructured.test_budget_is_exact_and_every_layer_has_its_share(
        "magnitude", 0.13, tiny_model(), no_text
    )


def _alone(masks: Any, gains: Any) -> Any:
    return [mask.scores / gain for mask, gain in zip(masks, gains, strict=True)]


BUDGETS: Mapping[str, Mutant] = {
    "budget ignores gains": (
        budget, "_cheapest", _ignores_gains,
        lambda _: test_budget.test_no_tile_left_dense_is_cheaper_per_zero_than_one_taken(),
    ),
    "ranking is off by one": (
        budget, "_nearest", _one_off,
        lambda _: test_cut.test_zeros_end_within_half_a_tie_of_the_budget(),
    ),
    "regions all round down": (
        candidates, "quotas", _regions_round_alone, _exact_budget,
    ),
    "a region loses one too many": (
        candidates, "_without_lowest", _without_one_more, _exact_budget,
    ),
    "tied tiles start at prices of their own": (
        start, "_prices", _alone,
        lambda _: (
            test_start.test_logits_rise_with_the_cost_per_zero_and_part_at_the_budget(
                tiny_model(), test_start.TIED, 0.25
            )
        ),
    ),
}  # fmt: skip


# One-shot methods


def _accepts_worse(weight: Any, own: Any, rest: Any, kept: Any) -> Any:
    moved, keep = _best(weight, own, rest, kept)
    return np.ones_like(moved), np.where(moved, keep, np.roll(kept, 1, axis=0))


def _ignores_other_groups(weight: Any, own: Any, rest: Any, kept: Any) -> Any:
    return _best(weight, own, np.zeros_like(rest), kept)


_best = descent._best


def _from_the_left(gram: Any) -> Any:
    damped = gram + 0.01 * gram.diagonal().mean() * np.eye(len(gram))
    return np.linalg.cholesky(damped).T


def _forgets_to_move(weight: Any, factor: Any, chooser: Any) -> Any:
    pruned = _prune_columns(weight, factor, chooser)
    return obs.Pruned(np.where(pruned.keep, weight, 0), pruned.keep, pruned.cost)


def _rows_turned(weight: Any, factor: Any, chooser: Any) -> Any:
    pruned = _prune_columns(weight, factor, chooser)
    return obs.Pruned(pruned.weight[::-1].copy(), pruned.keep[::-1].copy(), pruned.cost)


_prune_columns = obs.prune_columns


def _squares_turned(_linear: Any, square: Any, _rows: Any, weight: Any) -> None:
    gradient = weight.grad.float()
    gradient = gradient.T if gradient.shape[0] == gradient.shape[1] else gradient
    square.addcmul_(gradient, gradient)
    weight.grad = None


def _square_of_the_sum(_linear: Any, square: Any, _rows: Any, weight: Any) -> None:
    square.add_(weight.grad.float())
    weight.grad = None


def _squared_norms(evidence: Any) -> Any:
    return np.abs(evidence.weight) * evidence.moment.astype(np.float32)


def _by_input(evidence: Any, saliency: Any) -> Any:
    return evidence.fisher.mean(0, keepdims=True) * np.square(evidence.weight)


def _update_claim(folder: Path) -> None:
    text = write_text(folder / "text.txt", test_update.SAMPLES * test_update.WINDOW)
    test_update.test_first_block_is_pruned_on_its_own_inputs_and_the_next_on_pruned_ones(
        text, folder / "new"
    )


ONE_SHOT: Mapping[str, Mutant] = {
    "descent accepts a worse swap": (
        descent, "_best", _accepts_worse,
        lambda _: test_descent.test_error_never_rises_and_masks_stay_2_of_4(),
    ),
    "descent ignores what other groups lose": (
        descent, "_best", _ignores_other_groups,
        lambda _: test_descent.test_no_group_can_lower_the_error_alone(64),
    ),
    "surgeon's factor goes from the left": (
        obs, "_upper", _from_the_left,
        lambda _: test_obs.test_two_of_four_with_dense_tiles_is_the_surgeon_s(8, _rng()),
    ),
    "surgeon moves no weight": (
        test_obs, "prune_columns", _forgets_to_move,
        lambda _: test_obs.test_new_weights_err_less_than_the_old_ones_masked(_rng()),
    ),
    "update writes rows in another order": (
        update, "prune_columns", _rows_turned, _update_claim,
    ),
    "Fisher is of the other axis": (
        calibrate, "_take_gradient", _squares_turned,
        lambda _: test_calibrate.test_fisher_is_the_sum_of_squared_gradients(
            "llama", _windows()
        ),
    ),
    "Fisher forgets to square": (
        calibrate, "_take_gradient", _square_of_the_sum,
        lambda _: test_calibrate.test_fisher_is_the_sum_of_squared_gradients(
            "llama", _windows()
        ),
    ),
}  # fmt: skip

# Entries of a table are replaced, not attributes.
TABLES: Mapping[str, Mutant] = {
    "Wanda takes squared norms": (
        scores.SALIENCIES, "wanda", _squared_norms,
        lambda _: test_scores.test_wanda_is_the_size_times_the_norm_of_the_input(_evidence()),
    ),
    "cost takes the mean Fisher of an input": (
        scores.COSTS, "fisher", _by_input,
        lambda _: (
            test_scores.test_fisher_cost_is_the_squared_gradient_times_the_squared_weight(
                _evidence()
            )
        ),
    ),
}  # fmt: skip


def _evidence() -> scores.Evidence:
    weight = np.array([[1.0, -2.0], [-3.0, 0.5]], np.float32)
    fisher = np.array([[1.0, 2.0], [0.25, 4.0]], np.float32)
    return scores.Evidence(weight, np.array([4.0, 9.0]), fisher)


MUTANTS = {**GATES, **BUDGETS, **ONE_SHOT, **TABLES}


@pytest.mark.parametrize("name", MUTANTS)
def test_planted_mutant_is_caught(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    target, attribute, mutant, claim = MUTANTS[name]
    claim(tmp_path)
    if name in TABLES:
        monkeypatch.setitem(target, attribute, mutant)
    else:
        monkeypatch.setattr(target, attribute, mutant)
    with pytest.raises((AssertionError, GradcheckError)):
        claim(tmp_path)
