"""Masks by gradient: from a model and a text to candidates of any sparsity."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from patch_compile.errors import RecipeError
from patch_compile.io.digests import digest
from patch_compile.learn._progress import Progress, tell
from patch_compile.learn.candidates import Candidates, made_by
from patch_compile.learn.layout import Layout, layout
from patch_compile.learn.linears import Linear, prunable
from patch_compile.learn.model import LoadedModel
from patch_compile.learn.oneshot import gather_statistics
from patch_compile.learn.readable import check_windows
from patch_compile.learn.text import Windows, split_windows
from patch_compile.learn.training.board import board, check_board
from patch_compile.learn.training.gate import Gate, Moment, parameters_of
from patch_compile.learn.training.harden import hardened
from patch_compile.learn.training.masked import gated, recomputed
from patch_compile.learn.training.objective import Penalties
from patch_compile.learn.training.processes import as_launched, processes
from patch_compile.learn.training.run_folder import RunFolder
from patch_compile.learn.training.settings import Settings, settings
from patch_compile.learn.training.sharding import check_shardable, sharded
from patch_compile.learn.training.start import free_gates, restarted_gates, tiled_gates
from patch_compile.learn.training.train import Record, Trainer
from patch_compile.recipe import LearnRecipe
from patch_compile.tiles.masks import Masks

__all__ = ["learn_gates"]

# What may change between a run and its continuation, or is not read by methods that learn.
_FREE = frozenset(
    {
        "checkpoint_every",
        "lr",
        "precision",
        "recompute",
        "shard",
        "sparsity",
        "structure",
        "update",
    }
)

# A row of the log: of the start only the masks are known.
_BLANK: Mapping[str, Any] = dict.fromkeys(
    [field.name for field in fields(Record)] + ["held_out", "hard_density"], ""
)


def learn_gates(
    model: LoadedModel,
    sources: Sequence[str | Path],
    recipe: LearnRecipe,
    folder: Path,
    *,
    resume: bool = False,
    tensorboard: bool = False,
    progress: Progress | None = None,
) -> Candidates:
    """Learns masks, with a checkpoint every now and then.

    Args:
        model: unchanged afterwards; without weights after an error if they were spread.
        sources: texts to calibrate on and to learn from.
        recipe: of a method that learns.
        folder: of the run: checkpoints and log.csv.
        resume: go on from the folder's checkpoint, if it has one.
        tensorboard: write the log for TensorBoard too.
        progress: called with (steps done, steps in all, what).

    Raises:
        RecipeError: if the text is too short, the processes cannot do what they are launched
            for, the weights cannot be spread, no tile would be sparse, or the folder's run is
            of another recipe, model or text, or is there and `resume` is not asked.
        ModelError: if nothing can be pruned or read, or the loss is NaN or infinite.
        RuntimeUnavailable: if TensorBoard is asked for and not installed.
    """
    _check_asked(recipe, tensorboard=tensorboard)
    linears = prunable(model.module, recipe.include, recipe.ignore)
    # First, so that a geometry that does not fit is told before anything slow.
    cuts = layout(model.module, linears, recipe)
    recipe = as_launched(recipe, model.module)
    accelerator = processes(recipe)
    if recipe.shard == "full":
        check_shardable(model.module)
    passes = recipe.accumulate * accelerator.num_processes
    text = _text(model, sources, recipe, passes)
    run = RunFolder(folder, _identity(linears, sources, text, recipe, passes))
    main = accelerator.is_main_process
    with run.owned() if main else nullcontext():
        state = run.begin(resume=resume)
        # None may write a checkpoint before all have looked for one.
        accelerator.wait_for_everyone()
        start = _restart(run, linears, recipe) if state is not None else None
        if start is None:
            start = _start(model, linears, cuts, sources, recipe, progress)
            if start.prior is not None and main:
                run.keep_start(start.prior)
        with _trainer(accelerator, model, linears, start, text, recipe) as trainer:
            if state is not None:
                state.load(start.gates, trainer.optimizer)
                trainer.step = state.step
                # The file that it maps will be deleted.
                del state
            shown = board(folder, trainer.step) if tensorboard and main else nullcontext()
            with shown as note:
                _run(trainer, run, text, progress, note)
        description = made_by(model, sources, recipe) | (run.judged() if main else {})
    return hardened(start.gates, start.prior, linears, description)


def _check_asked(recipe: LearnRecipe, *, tensorboard: bool) -> None:
    """Tells before anything slow what cannot be had."""
    if tensorboard:
        check_board()
    if recipe.budget is None and recipe.aim == 0:
        raise _nothing_to_learn(recipe)


def _identity(
    linears: Mapping[str, Linear],
    sources: Sequence[str | Path],
    text: Windows,
    recipe: LearnRecipe,
    passes: int,
) -> dict[str, Any]:
    options = {k: v for k, v in asdict(recipe).items() if k not in _FREE}
    tokens = sha256(text.train.tobytes() + text.held_out.tobytes()).hexdigest()
    return {
        # Two processes are as one that takes two passes.
        "recipe": {**options, "sparsity": recipe.aim, "accumulate": passes},
        "model": {name: digest(linear.array()) for name, linear in linears.items()},
        "text": {"files": [Path(source).name for source in sources], "tokens": tokens},
    }


def _text(
    model: LoadedModel, sources: Sequence[str | Path], recipe: LearnRecipe, passes: int
) -> Windows:
    found = split_windows(
        sources,
        model.tokenizer,
        needed=recipe.steps * passes * recipe.batch,
        window=recipe.window,
        holdout=recipe.holdout,
        seed=recipe.seed,
    )
    for part in (found.train, found.held_out):
        check_windows(model.module, part)
    return found


@dataclass(frozen=True, eq=False)
class _Start:
    """Gates, ready to learn.

    Attributes:
        gates: by the names of their weights.
        moment: that they share.
        prior: the one-shot masks they start from; None for a method without tiles.
        settings: of the method.
    """

    gates: dict[str, Gate]
    moment: Moment
    prior: Masks | None
    settings: Settings


def _start(
    model: LoadedModel,
    linears: Mapping[str, Linear],
    cuts: Mapping[str, Layout],
    sources: Sequence[str | Path],
    recipe: LearnRecipe,
    progress: Progress | None,
) -> _Start:
    statistics = gather_statistics(model, linears, sources, recipe, progress)
    chosen, moment = settings(recipe), _moment(recipe)
    if recipe.method == "leap":
        gates = free_gates(linears, statistics, recipe, chosen.pattern, moment)
        return _Start(gates, moment, None, chosen)
    gates, prior = tiled_gates(linears, statistics, recipe, chosen.pattern, moment, cuts)
    if not gates:
        raise _nothing_to_learn(recipe)
    return _Start(gates, moment, prior, chosen)


def _nothing_to_learn(recipe: LearnRecipe) -> RecipeError:
    asked = f"sparsity | {recipe.aim:g}" if recipe.budget is None else "budget | it"
    return RecipeError(f"{asked} leaves every weight dense, nothing to learn; ask for more")


def _restart(
    run: RunFolder, linears: Mapping[str, Linear], recipe: LearnRecipe
) -> _Start | None:
    """Builds the gates of a run that has a checkpoint; None if it has no start to read."""
    chosen, moment = settings(recipe), _moment(recipe)
    if recipe.method == "leap":
        gates = free_gates(linears, None, recipe, chosen.pattern, moment)
        return _Start(gates, moment, None, chosen)
    prior = run.start()
    if prior is None:
        return None
    return _Start(
        restarted_gates(prior, recipe, chosen.pattern, moment), moment, prior, chosen
    )


def _moment(recipe: LearnRecipe) -> Moment:
    chosen = settings(recipe)
    dtype = torch.bfloat16 if recipe.precision == "bf16" else None
    return Moment(chosen.tile.at(0, 1), chosen.course.at(0, 1), dtype=dtype)


@contextmanager
def _trainer(
    accelerator: Accelerator,
    model: LoadedModel,
    linears: Mapping[str, Linear],
    start: _Start,
    text: Windows,
    recipe: LearnRecipe,
) -> Iterator[Trainer]:
    # First: weights that are spread cannot be read whole.
    penalties = _penalties(linears, start, recipe)
    with (
        gated(model.module, linears, start.gates, start.moment.dtype),
        recomputed(model.module) if recipe.recompute else nullcontext(),
        _spread(accelerator, model, start, recipe) as (prepared, optimizer),
    ):
        yield Trainer(
            accelerator,
            prepared,
            start.gates,
            optimizer,
            start.moment,
            text.train,
            recipe,
            start.settings,
            penalties,
            model.mask_token,
        )


@contextmanager
def _spread(
    accelerator: Accelerator, model: LoadedModel, start: _Start, recipe: LearnRecipe
) -> Iterator[tuple[Any, Any]]:
    """Yields the gated model on its device, for all processes, and its optimiser."""
    logits = [p for p in parameters_of(start.gates).values() if p.requires_grad]
    adam = torch.optim.Adam(logits, lr=0.0, betas=start.settings.betas, fused=True)
    if recipe.shard == "full":
        with sharded(model.module, start.gates, accelerator.device) as parts:
            yield parts, adam
    else:
        yield accelerator.prepare(model.module, adam)


def _penalties(linears: Mapping[str, Linear], start: _Start, recipe: LearnRecipe) -> Penalties:
    gates, weights = start.gates, {n: linears[n].weight.detach() for n in start.gates}
    learned = all(gate.learns_tiles for gate in gates.values())
    timed = learned and recipe.promise is not None
    return Penalties(
        density=start.settings.density_weight if learned else 0.0,
        norm=start.settings.norm_weight,
        variant=recipe.norm_term,
        target=recipe.density,
        # The gains of a budget of time are shares of the whole.
        size=1 if timed else sum(weight.numel() for weight in weights.values()),
        squares={name: float(w.float().square().sum()) for name, w in weights.items()},
    )


def _run(
    trainer: Trainer,
    run: RunFolder,
    text: Windows,
    progress: Progress | None,
    note: Callable[[Mapping[str, Any]], None] | None,
) -> None:
    recipe, main = trainer.recipe, trainer.accelerator.is_main_process
    # Of the last checkpoint; nothing before the first.
    judged: dict[str, float] = {}
    logged = trainer.step
    unjudged = logged == 0 or (logged == recipe.steps and run.last_judged() != logged)

    def log(found: Mapping[str, float]) -> None:
        nonlocal logged
        row = {**_BLANK, **found}
        logged = row["step"]
        # Every process stands at the same place; one of them keeps the files.
        if main:
            run.log(row)
        if note is not None:
            note(row)

    def after(record: Record) -> None:
        done = record.step == recipe.steps
        due = done or record.step % recipe.checkpoint_every == 0
        if due:
            judged.update(_judged(trainer, text))
        log(asdict(record) | (judged if due else {}))
        if main and due:
            run.save(record.step, trainer.gates, trainer.optimizer)
        tell(progress if main else None, record.step, recipe.steps, _described(record, judged))

    try:
        # Before the first step, or where a run was stopped while its last one was judged.
        if unjudged and (found := _judged(trainer, text)):
            log({"step": trainer.step, **found})
        trainer.run(after)
    except KeyboardInterrupt:
        # It may have come between a step and its row, as while the step was judged.
        if trainer.record is not None and trainer.record.step > logged:
            log(asdict(trainer.record))
        if main and trainer.step:
            run.save(trainer.step, trainer.gates, trainer.optimizer)
        raise


def _judged(trainer: Trainer, text: Windows) -> dict[str, float]:
    if not len(text.held_out):
        return {}
    loss, density = trainer.judge(text.held_out)
    return {"held_out": loss, "hard_density": density}


def _described(record: Record, judged: Mapping[str, float]) -> str:
    said = f"learning, loss {record.loss:.3f}, density {record.density:.3f}"
    return f"{said} (hard {judged['hard_density']:.3f})" if judged else said
