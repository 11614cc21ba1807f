"""The folder of a run: its checkpoint, to go on from, and its log.

A checkpoint is `step-NNNNNNN.safetensors`, every gate's tensors and Adam's moments, and
`state.json`, which names it and says what it belongs to. `start.json` has the one-shot masks
that learning started from, so that going on needs no calibration.
"""

import csv
import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from patch_compile.errors import MaskError, RecipeError
from patch_compile.io.atomic import owned_folder, staged_folder, write_text
from patch_compile.io.load_masks import load_masks
from patch_compile.io.masks_file import save_masks
from patch_compile.learn.training.gate import Gate, parameters_of
from patch_compile.parsing import parse_json
from patch_compile.tiles.masks import Masks

__all__ = ["RunFolder", "State"]

_FORMAT = "patch-compile/run"
_VERSION = 1
# How a log starts.
_STEP = "step,"
_DIGEST = re.compile("[0-9a-f]{64}")
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, eq=False)
class State:
    """Where a run stood.

    Attributes:
        path: the file of the tensors.
        step: steps done.
        tensors: `NAME/tiles` and `NAME/stored` of every gate, and Adam's moments of those
            that learn, `NAME/tiles/exp_avg` and so on.
    """

    path: Path
    step: int
    tensors: Mapping[str, Tensor]

    def load(self, gates: Mapping[str, Gate], optimizer: Any) -> None:
        """Puts the tensors into gates of the same run, and into their optimiser.

        Raises:
            RecipeError: if the tensors are not those of these gates.
        """
        for key, parameter in parameters_of(gates).items():
            with torch.no_grad():
                parameter.copy_(self._of(key, parameter))
            # A parameter that no step has used yet has no moments.
            if f"{key}/{_MOMENTS[0]}" in self.tensors:
                optimizer.state[parameter] = self._moments(key, parameter)

    def _moments(self, key: str, parameter: Tensor) -> dict[str, Tensor]:
        # Copies: the tensors are a map of the file, which the next checkpoint deletes.
        moments = {name: self._of(f"{key}/{name}", parameter).clone() for name in _MOMENTS}
        # Where the parameter is: the fused Adam of a GPU counts its steps there.
        step = torch.tensor(float(self.step), device=parameter.device)
        return {"step": step, **moments}

    def _of(self, key: str, like: Tensor) -> Tensor:
        found = self.tensors.get(key)
        if found is None or (found.shape, found.dtype) != (like.shape, like.dtype):
            raise RecipeError(
                f"run '{self.path.parent}' | has no {key} of shape {tuple(like.shape)} in "
                f"{self.path.name}; start afresh in another folder"
            )
        return found.to(like.device)


@dataclass(frozen=True)
class RunFolder:
    """A run's files.

    Attributes:
        path: the folder.
        identity: what a checkpoint must agree in to be gone on from: recipe, weights, texts.
    """

    path: Path
    identity: Mapping[str, Any]

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Keeps other runs out of the folder meanwhile; makes it where it is missing.

        Raises:
            RecipeError: if another process learns there, or it cannot be written.
        """
        with ExitStack() as stack:
            try:
                free = stack.enter_context(owned_folder(self.path))
            except (FileExistsError, NotADirectoryError) as error:
                raise RecipeError(
                    f"run '{self.path}' | is a file, or below one; expected a folder, which "
                    "learning makes"
                ) from error
            except OSError as error:
                raise self._unwritable(error.strerror) from error
            if not free:
                raise RecipeError(
                    f"run '{self.path}' | is written by another process that learns; wait for "
                    "it, or choose another folder"
                )
            yield

    def begin(self, *, resume: bool) -> State | None:
        """Returns the checkpoint to go on from, or None to start afresh.

        Raises:
            RecipeError: if there is one and `resume` is not asked, or it is of another run, or
                the folder has the log of something else.
        """
        state = self.load()
        if state is not None and not resume:
            raise RecipeError(
                f"run '{self.path}' | is at step {state.step}; --resume to go on, or start "
                "afresh in another folder"
            )
        if state is None:
            self._check_log()
        self.trim_log(-1 if state is None else state.step)
        return state

    def save(self, step: int, gates: Mapping[str, Gate], optimizer: Any) -> None:
        """Writes a checkpoint; the one before stays until this one is whole.

        Raises:
            RecipeError: if it cannot be written, as on a full disk.
        """
        tensors: dict[str, Tensor] = {}
        for key, parameter in parameters_of(gates).items():
            tensors[key] = parameter.detach().contiguous()
            for name in _MOMENTS if parameter in optimizer.state else ():
                tensors[f"{key}/{name}"] = optimizer.state[parameter][name].contiguous()
        arrays = f"step-{step:07}.safetensors"
        with staged_folder(self.path) as stage:
            try:
                save_file(tensors, stage / arrays)
            except SafetensorError as error:
                raise self._unwritable(str(error)) from error
        index = {"format": _FORMAT, "version": _VERSION, "step": step, "arrays": arrays}
        text = json.dumps({**index, "identity": self.identity}, indent=1) + "\n"
        # Only this makes the new arrays count.
        write_text(self.path / "state.json", text)
        for old in self.path.glob(f"step-{'[0-9]' * 7}.safetensors"):
            if old.name != arrays:
                old.unlink(missing_ok=True)

    def load(self) -> State | None:
        """Reads the checkpoint; None if there is none.

        Raises:
            RecipeError: if it is damaged, or of another run.
        """
        index = self._index()
        if index is None:
            return None
        self._check(index)
        try:
            # Only a name of ours: the index may have been edited.
            arrays = self.path / f"step-{index['step']:07}.safetensors"
            return State(arrays, index["step"], load_file(arrays))
        except (OSError, SafetensorError) as error:
            raise RecipeError(
                f"run '{self.path}' | has arrays that cannot be read: {error}; start afresh"
            ) from error

    def _index(self) -> Any:
        try:
            return parse_json((self.path / "state.json").read_text("utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise RecipeError(
                f"run '{self.path}' | has a state.json that cannot be read: {error}; start "
                "afresh in another folder"
            ) from error

    def _check(self, index: Any) -> None:
        if not _readable(index):
            raise RecipeError(
                f"run '{self.path}' | has a state.json that is not of this version of "
                "patch-compile; start afresh in another folder"
            )
        before = index["identity"]
        # As JSON gives it back: tuples are lists there.
        for what, value in json.loads(json.dumps(self.identity)).items():
            if before.get(what) != value:
                difference = _differing(before.get(what), value)
                raise RecipeError(
                    f"run '{self.path}' | is of another {what}: {difference}; resume with the "
                    "same, or start afresh in another folder"
                )

    def keep_start(self, prior: Masks) -> None:
        """Writes the masks that learning starts from, all tiles 2:4 and scored."""
        path = self.path / "start.json"
        arrays = path.with_suffix(".safetensors")
        if arrays.exists() and not path.exists():
            # A process that was killed, or a user who deleted start.json, left them.
            try:
                arrays.unlink()
            except OSError as error:
                raise self._unwritable(error.strerror) from error
        save_masks(prior, path)

    def start(self) -> Masks | None:
        """Reads the masks that learning started from; None if they are not there.

        Raises:
            RecipeError: if they are damaged.
        """
        path = self.path / "start.json"
        try:
            return load_masks(path) if path.exists() else None
        except MaskError as error:
            raise RecipeError(
                f"run '{self.path}' | has a start.json that cannot be read: {error}; delete "
                "it, and learning calibrates anew"
            ) from error

    def log(self, row: Mapping[str, Any]) -> None:
        """Adds a row to log.csv."""
        try:
            with (self.path / "log.csv").open("a", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, row)
                if file.tell() == 0:
                    writer.writeheader()
                writer.writerow(row)
        except OSError as error:
            raise self._unwritable(error.strerror) from error

    def judged(self) -> dict[str, dict[str, dict[str, float]]]:
        """Reads from log.csv what held-out windows said of the first and the last masks.

        Returns:
            Under `held_out`: `start` and `end`, each with the `loss` in nats a token and the
            `density` that hard masks had in the weights that learn; empty if nothing was held
            out, or the log does not tell (any more).
        """
        rows = self._judgements()
        if len(rows) < 2 or 0 not in rows:
            return {}
        return {"held_out": {"start": rows[0], "end": rows[max(rows)]}}

    def last_judged(self) -> int | None:
        """Returns the last step whose masks were judged, as far as log.csv tells."""
        return max(self._judgements(), default=None)

    def _judgements(self) -> dict[int, dict[str, float]]:
        """Reads from log.csv what held-out windows said, by step."""
        try:
            with (self.path / "log.csv").open(encoding="utf-8", newline="") as file:
                rows = [row for row in csv.DictReader(file) if row["held_out"]]
            return {int(row["step"]): _judgement(row) for row in rows}
        except (OSError, ValueError, KeyError, TypeError, csv.Error):
            # Nothing depends on it: a log that was edited or deleted is no error.
            return {}

    def trim_log(self, step: int) -> None:
        """Drops the rows of steps after `step`, which a resumed run takes again."""
        path = self.path / "log.csv"
        if not path.exists():
            return
        # A run that was killed may have left nothing, or half a row.
        lines = path.read_text("utf-8", "replace").splitlines(keepends=True)
        kept = [line for line in lines[1:] if _step_of(line) <= step]
        write_text(path, "".join(lines[:1] + kept))

    def _check_log(self) -> None:
        """Refuses to trim what no run has written."""
        path = self.path / "log.csv"
        first = path.read_text("utf-8", "replace").partition("\n")[0] if path.exists() else ""
        # A run that was killed may have left a part.
        if not first.startswith(_STEP) and not _STEP.startswith(first):
            raise RecipeError(
                f"run '{self.path}' | has a log.csv that is not of learning, it starts with "
                f"{first[:40]!r}; choose another folder"
            )

    def _unwritable(self, why: str | None) -> RecipeError:
        return RecipeError(
            f"run '{self.path}' | cannot be written: {why}; free some space or choose another "
            "folder"
        )


def _judgement(row: Mapping[str, str]) -> dict[str, float]:
    loss, density = float(row["held_out"]), float(row["hard_density"])
    if not (math.isfinite(loss) and math.isfinite(density)):
        raise ValueError
    return {"loss": loss, "density": density}


def _readable(index: Any) -> bool:
    """Tells whether a state.json has what is read of it."""
    return (
        isinstance(index, dict)
        and (index.get("format"), index.get("version")) == (_FORMAT, _VERSION)
        and isinstance(index.get("step"), int)
        and isinstance(index.get("identity"), dict)
    )


def _step_of(row: str) -> float:
    """Returns the step of a row of the log; one that is after all others if it is damaged."""
    step = row.partition(",")[0]
    return int(step) if step.isdecimal() and row.endswith("\n") else math.inf


def _differing(before: Any, now: Any) -> str:
    """Says briefly in what two values differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = [key for key in now if before.get(key) != now[key]]
        return "; ".join(
            f"{key} {_brief(before.get(key))}, now {_brief(now[key])}" for key in keys[:2]
        )
    return f"{_brief(before)}, now {_brief(now)}"


def _brief(value: Any) -> str:
    """A value as people compare it; of a digest, the first digits."""
    digest = isinstance(value, str) and _DIGEST.fullmatch(value)
    return f"sha256 {value[:8]}…" if digest else repr(value)[:80]
