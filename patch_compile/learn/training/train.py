"""The loop: forward, backward, step.

B: windows in a forward pass. T: tokens in a window.
"""

import math
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from patch_compile.errors import ModelError
from patch_compile.learn.questions import questions, uncached
from patch_compile.learn.training.gate import Gate, Moment, parameters_of
from patch_compile.learn.training.noise import Draw
from patch_compile.learn.training.objective import Penalties, language_loss
from patch_compile.learn.training.schedule import Annealed, learning_rate
from patch_compile.learn.training.settings import Settings
from patch_compile.learn.training.sharding import average_gradients
from patch_compile.recipe import LearnRecipe

__all__ = ["Record", "Trainer"]

# Near enough to 0 that a logit of 1e-3 already decides.
_HARD = Annealed(temperature=1e-6, scale=1.0)


@dataclass(frozen=True)
class Record:
    """One step, as it is logged.

    Attributes:
        step: from 1.
        loss: of the language model, nats a token.
        penalty: density and norm terms.
        density: mean of the sampled masks.
        lr: learning rate.
        seconds: the step took.
    """

    step: int
    loss: float
    penalty: float
    density: float
    lr: float
    seconds: float


@dataclass
class Trainer:
    """A run: its model, its gates, its optimiser.

    Attributes:
        accelerator: places and spreads the model.
        model: as the accelerator prepared it, gates in it.
        gates: by the names of their weights.
        optimizer: of their logits.
        moment: shared by the gates.
        windows: int64 (steps * windows a step, T).
        recipe: what was asked.
        settings: of the method.
        penalties: of the objective.
        mask_token: of a masked language model; None for a causal one.
        step: steps done.
        record: of the last step; None before the first.
    """

    accelerator: Accelerator
    model: Any
    gates: Mapping[str, Gate]
    optimizer: Any
    moment: Moment
    windows: NDArray[np.int64]
    recipe: LearnRecipe
    settings: Settings
    penalties: Penalties
    mask_token: int | None = None
    step: int = 0
    record: Record | None = None

    def run(self, after: Callable[[Record], None]) -> None:
        """Takes the steps that remain; `after` is called when one is done.

        Raises:
            ModelError: if the loss or a gradient is NaN or infinite; the step is not taken.
        """
        while self.step < self.recipe.steps:
            after(self._take())

    def _take(self) -> Record:
        begun = perf_counter()
        steps = self.recipe.steps
        self.moment.tile = self.settings.tile.at(self.step, steps)
        self.moment.pattern = self.settings.course.at(self.step, steps)
        rate = learning_rate(self.settings.lr, self.step, steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        passes = [self._pass(micro) for micro in range(self.recipe.accumulate)]
        if self.recipe.shard == "full":
            # DDP does this in the backward pass.
            average_gradients(self._logits())
        norm: Any = self.accelerator.clip_grad_norm_(self._logits(), 1.0)
        self._check("norm of the gradients", float(norm))
        loss, penalty, density = self._mean(passes)
        with _undivided():
            self.optimizer.step()
            self.step += 1
            seconds = perf_counter() - begun
            # Here: an interrupt that waited comes next, and the step stands.
            self.record = Record(self.step, loss, penalty, density, rate, seconds)
            self.optimizer.zero_grad(set_to_none=True)
        return self.record

    def _mean(self, passes: list[tuple[float, float, float]]) -> list[float]:
        """Averages what was measured over the passes of all processes."""
        mine = torch.tensor(passes, dtype=torch.float64).mean(0)
        every: Any = self.accelerator.gather(mine[None].to(self.accelerator.device))
        return [float(value) for value in every.mean(0)]

    def _pass(self, micro: int) -> tuple[float, float, float]:
        """Runs one batch forward and backward: loss, penalty, density."""
        accelerator, recipe = self.accelerator, self.recipe
        slot = micro * accelerator.num_processes + accelerator.process_index
        self.moment.draw = Draw(recipe.seed, self.step, slot)
        ids = self._batch(slot)
        last = micro == recipe.accumulate - 1
        share = 1.0 / recipe.accumulate
        with nullcontext() if last else accelerator.no_sync(self.model):
            loss = self.loss(ids)
            value = loss.item()
            self._check("loss", value)
            gates = list(self.gates.values())
            penalty = self.penalties.apply(gates, self.step / recipe.steps, share)
            accelerator.backward(loss * share)
        return value, penalty, self._density()

    def _density(self) -> float:
        """Returns the mean of all masks, as they were last drawn."""
        gained = torch.stack([gate.gained for gate in self.gates.values()])
        return 1.0 - gained.sum().item() / self.penalties.size

    def loss(self, ids: Tensor) -> Tensor:
        """Returns the loss of a batch, int64 (B, T), in nats a token."""
        dense = None
        ids, answers = questions(ids, self.mask_token)
        if self.recipe.distill:
            # The same weights with open gates: a teacher that needs no memory of its own.
            with torch.no_grad(), self._opened():
                dense = self._logits_of(ids)
        return language_loss(self._logits_of(ids), answers, dense)

    @torch.no_grad()
    def judge(self, windows: NDArray[np.int64]) -> tuple[float, float]:
        """Returns the loss of hard masks on windows never learned from.

        Returns:
            nats a token, and the density of the hard masks.
        """
        # The next step sets its own.
        self.moment.tile = self.moment.pattern = _HARD
        self.moment.draw = None
        losses = []
        for window in windows:
            ids, answers = questions(self._tensor(window[None]), self.mask_token)
            losses.append(language_loss(self._logits_of(ids), answers, None).item())
        if self.recipe.shard == "full":
            # No backward pass comes to free what this left gathered.
            self.model.reshard()
        return float(np.mean(losses)), self._density()

    def _logits_of(self, ids: Tensor) -> Tensor:
        kind = self.accelerator.device.type
        with torch.autocast(kind, torch.bfloat16, enabled=self.recipe.precision == "bf16"):
            logits: Tensor = self.model(input_ids=ids, **uncached(self.model)).logits
        return logits

    @contextmanager
    def _opened(self) -> Iterator[None]:
        self.moment.opened = True
        try:
            yield
        finally:
            self.moment.opened = False

    def _batch(self, slot: int) -> Tensor:
        """Returns the windows of one pass, int64 (B, T); none is ever used twice."""
        size = self.recipe.batch
        passes = self.recipe.accumulate * self.accelerator.num_processes
        first = (self.step * passes + slot) * size
        return self._tensor(self.windows[first : first + size])

    def _tensor(self, windows: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(windows.astype(np.int64)).to(self.accelerator.device)

    def _check(self, what: str, value: float) -> None:
        if math.isfinite(value):
            return
        largest = max(logit.detach().abs().max().item() for logit in self._logits())
        raise ModelError(
            f"{what} | is {value} at step {self.step + 1} (learning rate "
            f"{self.optimizer.param_groups[0]['lr']:.2g}, largest logit {largest:.3g}); lower "
            "--lr or use --precision fp32, then --resume from the last checkpoint"
        )

    def _logits(self) -> list[Tensor]:
        return [p for p in parameters_of(self.gates).values() if p.requires_grad]


@contextmanager
def _undivided() -> Iterator[None]:
    """Lets an interrupt wait for the end of the body: from half a step nothing goes on."""
    if threading.current_thread() is not threading.main_thread():
        # Only the main thread is interrupted.
        yield
        return
    waiting: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda n, _: waiting.append(n)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
    if waiting:
        signal.raise_signal(waiting[0])
