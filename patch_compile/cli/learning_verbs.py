"""The verbs `learn` and `cut`: each parses, calls the API, prints."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from patch_compile import api
from patch_compile.cli.console import out, progress_bar, say
from patch_compile.cli.outputs import check_output
from patch_compile.errors import RecipeError
from patch_compile.io.load_masks import load_masks
from patch_compile.io.masks_file import check_place, save_masks
from patch_compile.recipe import LearnRecipe, promise_of
from patch_compile.recipe.checks import within
from patch_compile.tiles.cut import cut_masks
from patch_compile.tiles.masks import Masks
from patch_compile.tiles.promise import cut_in_time

__all__ = ["cut", "learn"]

_LEARN = LearnRecipe()

# Densities closer than this are one: tiles have a size.
_NEAR = 0.005

_Output = Annotated[Path, Parameter(alias="-o")]


def learn(
    model: str,
    /,
    *,
    data: tuple[str, ...] = (),
    output: _Output = Path("masks.json"),
    run: Path | None = None,
    resume: Annotated[bool, Parameter(negative="")] = False,
    tensorboard: Annotated[bool, Parameter(negative="")] = False,
    checkpoint: Path | None = None,
    recipe: Annotated[LearnRecipe, Parameter(name="*")] = _LEARN,
) -> None:
    """Make masks for MODEL: 2:4 patterns, and which tiles take them.

    `magnitude`, `wanda`, `sparsegpt` and `descent` take one pass over a little text. The
    other methods start from one of those (`--prior`) and learn; what they have learned is
    kept in a folder, from which `--resume` goes on. `cut` makes masks of less sparsity.

    Baselines: `--tile weight` chooses whole layers, each all dense or all 2:4;
    `--include '*.mlp.*' --sparsity 0.5` is 2:4 in the MLPs alone; `--method leap` and
    `--structure unstructured` put zeros anywhere.

    Args:
        model: a causal or masked language model: a Hugging Face directory, a hub id, or a
            GGUF file.
        data: text to calibrate on and to learn from: UTF-8, .jsonl with a `text` field, or a
            data set as hf:NAME:CONFIG:SPLIT, streamed; may be given several times. No window
            is learned from twice: steps x batch x accumulate + holdout of them are needed.
        output: masks.json; its arrays go beside it. Of several sparsities, each gets a file:
            masks-0.25.json.
        run: folder of a learning method's checkpoints and log.csv; by default OUTPUT's name
            with .run.
        resume: go on from the checkpoint in the run's folder.
        tensorboard: write the log into the run's folder for TensorBoard too.
        checkpoint: folder for the model whose weights --update changed; the masks are for it.
    """
    asked = {"run": run is not None, "resume": resume, "tensorboard": tensorboard}
    _check_run(recipe, [name for name, given in asked.items() if given])
    places = _places(output, recipe.sparsity)
    folder = run or output.with_suffix(".run")
    first = _first_process()
    with _kept(folder, resumed=resume and first), progress_bar() as progress:
        found = api.learn_candidates(
            model,
            data,
            recipe,
            run=folder,
            resume=resume,
            tensorboard=tensorboard,
            checkpoint=checkpoint,
            progress=progress if first else None,
        )
    if not first:
        return
    if checkpoint is not None:
        say(f"wrote {checkpoint}")
    _save_asked(api.asked_masks(found, recipe), places, recipe)


def _save_asked(asked: Sequence[Masks], places: Sequence[Path], recipe: LearnRecipe) -> None:
    for path, sparsity, masks in zip(places, recipe.sparsity, asked, strict=True):
        _save(masks, path, "" if recipe.budget else f" (asked {sparsity:.2%})")
    _tell_judged(asked[0], max(zip(recipe.sparsity, places, strict=True))[1])


def _tell_judged(masks: Masks, aim: Path) -> None:
    """Says what learning was worth, on text that was not learned from.

    Args:
        masks: of the run.
        aim: the file of the sparsity that it aimed at.
    """
    judged = masks.made_by.get("held_out")
    if judged is None:
        return
    start, end = judged["start"], judged["end"]
    out.print(
        f"held-out loss {end['loss']:.4f} nats a token by {aim}, {start['loss']:.4f} before "
        f"learning; density of the weights that learn {end['density']:.4f}, "
        f"{start['density']:.4f} before"
    )
    # Masks that were denser before prove nothing.
    if end["loss"] > start["loss"] and start["density"] <= end["density"] + _NEAR:
        say(
            "learning made the masks worse than those it started from; take more --steps or a "
            "lower --lr, or a method of one pass"
        )


@contextmanager
def _kept(folder: Path, *, resumed: bool) -> Iterator[None]:
    """Says of a run what it goes on from, and if it is interrupted, what is left of it."""
    if resumed and not (folder / "state.json").exists():
        say(f"'{folder}' | has no checkpoint to go on from; learning starts at step 1")
    try:
        yield
    except KeyboardInterrupt:
        if (folder / "state.json").exists():
            say(f"'{folder}' | keeps what was learned so far; go on with --resume")
        raise


def _check_run(recipe: LearnRecipe, asked: list[str]) -> None:
    """Refuses what only a run can do, for methods that are done in one go."""
    if asked and not recipe.learns:
        raise RecipeError(
            f"{asked[0]} | is asked of method '{recipe.method}', which takes no steps and "
            "keeps no run; leave it out, or choose a method that learns"
        )


def _save(masks: Masks, path: Path, asked: str = "") -> None:
    save_masks(replace(masks, made_by={**masks.made_by, "sparsity": masks.sparsity}), path)
    out.print(f"{len(masks.weights)} weights, sparsity {masks.sparsity:.4%}{asked}")
    budget = masks.made_by.get("budget")
    if budget is not None:
        tokens = ",".join(budget["tokens"])
        out.print(
            f"predicted {budget['speedup']:.3f}x as fast as dense on {budget['target']} at "
            f"{tokens} tokens (asked {budget['asked']})"
        )
    say(f"wrote {path}")


def _first_process() -> bool:
    """Tells, under torchrun or accelerate launch, which of the processes speaks and writes."""
    return os.environ.get("RANK", "0") == "0"


def _places(path: Path, sparsities: Sequence[float]) -> list[Path]:
    """The file of each sparsity, checked; of one alone, `path` itself.

    Raises:
        RecipeError: if two would be written to one file.
        PatchCompileError: if one cannot be written there, see `check_place`.
    """
    names = [f"{path.stem}-{s:g}{path.suffix}" for s in sparsities]
    places = [path] if len(sparsities) == 1 else [path.with_name(name) for name in names]
    twice = next((place for place in places if places.count(place) > 1), None)
    if twice is not None:
        given = ",".join(map(str, sparsities))
        raise RecipeError(
            f"sparsity | is {given}, of which two would be written to '{twice}'; leave one out"
        )
    for place in places:
        check_place(place)
    return places


def cut(
    masks: Path,
    /,
    *,
    sparsity: float | None = None,
    budget: str | None = None,
    output: _Output = Path("masks.json"),
) -> None:
    """Make tiles of MASKS dense again, dearest by score first; nothing is learned.

    Give the sparsity that is to be left, or the predicted time.

    Args:
        masks: masks.json with scores, as `learn` writes them, of any method that has tiles.
        sparsity: zeros over all weights, 0 to that of MASKS.
        budget: predicted time of the masked weights on a GPU, as in `time:1.25x@a100-bf16:16`,
            1.25 times as fast as dense at 16 tokens; of free tiles, rows and columns of them
            that are wholly 2:4 count.
        output: masks.json; its arrays go beside it. MASKS are never replaced.
    """
    if (sparsity is None) == (budget is None):
        raise RecipeError(
            "cut | needs one of --sparsity and --budget, as in --sparsity 0.2 or "
            "--budget time:1.25x@a100-bf16:16"
        )
    if sparsity is not None:
        within("sparsity", sparsity, 0.0, 0.5)
    _check_cut(masks, output, "cut" if sparsity is None else f"{sparsity:g}")
    before = load_masks(masks)
    if sparsity is not None:
        # What an earlier cut promised is not kept by this one.
        made_by = {name: value for name, value in before.made_by.items() if name != "budget"}
        _save(cut_masks(replace(before, made_by=made_by), sparsity), output)
    elif budget is not None:
        _save(cut_in_time(before, promise_of(budget)), output)


def _check_cut(masks: Path, output: Path, what: str) -> None:
    """Refuses to write over the masks that are cut, or over their arrays."""
    check_place(output)
    other = masks.with_name(f"{masks.stem}-{what}.json")
    told = "is read by this command, and would be overwritten; choose another name, as in -o "
    for written in (output, output.with_suffix(".safetensors")):
        check_output(written, [masks], told=f"{told}{other}")
