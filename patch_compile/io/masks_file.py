"""The project's own mask format: `masks.json` and the safetensors file beside it.

N: out features. K: in features. R, C: tiles along N and K. `masks.schema.json` in this folder
is the published schema.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from jsonschema.validators import extend
from numpy.typing import NDArray

from patch_compile.errors import MaskError, RecipeError
from patch_compile.io.atomic import check_file, staged_folder
from patch_compile.io.safetensors_file import LazyArray, SafetensorsFile, write_safetensors
from patch_compile.parsing import parse_json
from patch_compile.tiles.geometry import TileGrid
from patch_compile.tiles.masks import Masks
from patch_compile.tiles.weight_mask import WeightMask

__all__ = ["FORMAT", "check_place", "read_masks_json", "save_masks", "schema"]

FORMAT = "patch-compile/masks"


def schema() -> dict[str, Any]:
    """Returns the JSON schema of masks.json."""
    text = files("patch_compile.io").joinpath("masks.schema.json").read_text("utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def check_place(path: Path) -> None:
    """Refuses where `save_masks` could not write: before the hours that masks may take.

    Raises:
        MaskError: if the name is no file's that ends in .json, or a file that is none of
            earlier masks would be replaced, as a checkpoint's config.json or its weights.
        ModelError: if the folder cannot be written.
    """
    if path.suffix != ".json" or path.is_dir():
        raise MaskError(f"masks '{path}' | would be written as JSON; expected a name in .json")
    check_file(path)
    _refuse_others_files(path)


def _refuse_others_files(path: Path) -> None:
    """Refuses to replace what is not of earlier masks of this name."""
    arrays = path.with_suffix(".safetensors")
    named = _named_arrays(path) if path.exists() else None
    if arrays.exists() and named != arrays.name:
        raise MaskError(
            f"masks '{path}' | would replace '{arrays}', which no masks there name as their "
            "arrays; move it away or choose another name"
        )


def _named_arrays(path: Path) -> str | None:
    """The file that masks name as their arrays.

    Raises:
        MaskError: if the file is none of masks.
    """
    try:
        index = parse_json(path.read_text("utf-8"))
    except (OSError, ValueError):
        index = None
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise MaskError(
            f"masks '{path}' | would replace a file that is none of masks, or a damaged one; "
            "move it away or choose another name"
        )
    data = index.get("data")
    return data if isinstance(data, str) else None


def save_masks(masks: Masks, path: str | Path) -> None:
    """Writes `path` and the arrays beside it, in `<stem>.safetensors`.

    Raises:
        MaskError: if a sparse tile is not 2:4, the arrays cannot be written, or a file that is
            none of earlier masks would be replaced.
        ModelError: if the folder cannot be written.
    """
    path = Path(path)
    check_place(path)
    masks.check()
    with staged_folder(path.parent) as stage:
        data = stage / f"{path.stem}.safetensors"
        digest = _save_arrays(masks, data)
        index = {
            "format": FORMAT,
            "version": 1,
            "data": data.name,
            "data_sha256": digest,
            "made_by": dict(masks.made_by),
            "weights": [_entry(mask) for mask in masks.weights.values()],
        }
        (stage / path.name).write_text(json.dumps(index, indent=1) + "\n", "utf-8")


def _save_arrays(masks: Masks, path: Path) -> str:
    arrays = [array for mask in masks.weights.values() for array in _arrays(mask)]
    try:
        return write_safetensors(path, arrays)
    except OSError as error:
        raise MaskError(
            f"masks '{path.name}' | cannot be written: {error}; free some space or choose "
            "another folder"
        ) from error


def _arrays(mask: WeightMask) -> Iterator[LazyArray]:
    n, k = mask.shape
    tiles: dict[str, tuple[Any, NDArray[Any] | None]] = {
        "dense": (np.uint8, mask.dense),
        "scores": (np.float32, mask.scores),
        "ties": (np.int32, mask.ties),
    }
    yield LazyArray(f"{mask.name}.keep", np.uint8, (n, -(-k // 8)), mask.bits)
    for what, (dtype, array) in tiles.items():
        if array is not None:
            made = partial(np.asarray, array, dtype)
            yield LazyArray(f"{mask.name}.{what}", dtype, array.shape, made)


def _entry(mask: WeightMask) -> dict[str, Any]:
    return {
        "name": mask.name,
        "shape": list(mask.shape),
        "geometry": mask.geometry,
        "rows": _short(mask.grid.rows),
        "columns": _short(mask.grid.columns),
        "sha256": dict(mask.digests),
    }


def _short(edges: tuple[int, ...]) -> int | list[int]:
    step = edges[1]
    return step if edges == (*range(0, edges[-1], step), edges[-1]) else list(edges)


def _long(edges: int | list[int], size: int) -> tuple[int, ...]:
    return (*range(0, size, edges), size) if isinstance(edges, int) else tuple(edges)


def _sha256(path: Path) -> str:
    total = hashlib.sha256()
    with path.open("rb") as file:
        # hashlib.file_digest would do this, from Python 3.11 on.
        while block := file.read(2**20):
            total.update(block)
    return total.hexdigest()


def read_masks_json(path: Path) -> Masks:
    """Reads masks.json; keep bits stay on disk until a weight needs them.

    Raises:
        MaskError: one line that names the file or weight, the value and the mending.
    """
    index = _index(path)
    arrays = SafetensorsFile.open(_side_file(path, index))
    masks = [_mask(arrays, entry) for entry in index["weights"]]
    by_name = {mask.name: mask for mask in masks}
    if len(by_name) != len(masks):
        raise MaskError(f"masks '{path}' | name a weight twice; expected each once")
    loaded = Masks(by_name, index.get("made_by", {}))
    loaded.check()
    return loaded


def _side_file(path: Path, index: Mapping[str, Any]) -> Path:
    data: Path = path.parent / index["data"]
    if data.is_symlink():
        raise MaskError(
            f"masks '{path}' | '{data.name}' is a symbolic link; put the file itself there"
        )
    if not data.is_file():
        raise MaskError(f"masks '{path}' | need '{data.name}' beside them; copy it there")
    try:
        found = _sha256(data)
    except OSError as error:
        raise MaskError(f"masks '{data}' | cannot be read: {error.strerror}") from error
    if found != index["data_sha256"]:
        raise MaskError(
            f"masks '{path}' | do not fit '{data.name}': its sha256 differs from the one "
            "recorded, so it is truncated or belongs to other masks; copy both files again"
        )
    return data


def _index(path: Path) -> dict[str, Any]:
    try:
        index = parse_json(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise MaskError(f"masks '{path}' | cannot be read as JSON: {error}") from error
    if isinstance(index, dict) and index.get("version", 1) != 1:
        raise MaskError(
            f"masks '{path}' | have version {index['version']!r}; this release reads version "
            "1; update patch-compile or make the masks again"
        )
    wrong = best_match(_validator().iter_errors(index))
    if wrong is not None:
        raise MaskError(f"masks '{path}' | {_where(index, wrong)}: {_brief(wrong.message)}")
    checked: dict[str, Any] = index
    return checked


def _validator() -> Any:
    # JSON schema counts 8.0 as an integer; a shape or an edge of 8.0 is none in Python.
    def whole(_: Any, value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool)

    types = Draft202012Validator.TYPE_CHECKER.redefine("integer", whole)
    return extend(Draft202012Validator, type_checker=types)(schema())


def _where(index: Any, wrong: Any) -> str:
    steps = list(wrong.absolute_path)
    if len(steps) < 2 or steps[0] != "weights":
        return "/".join(map(str, steps)) or "the whole file"
    entry = index["weights"][steps[1]]
    name = entry.get("name", steps[1]) if isinstance(entry, dict) else steps[1]
    return " ".join(["weight", repr(name), *map(str, steps[2:])])


def _brief(message: str) -> str:
    return message if len(message) < 200 else f"{message[:200]} …"


def _mask(arrays: SafetensorsFile, entry: Mapping[str, Any]) -> WeightMask:
    name, (n, k) = entry["name"], entry["shape"]
    # First, as it bounds N and K by the file's size: a vast shape has vast lists of edges.
    keep = arrays.lazy(f"{name}.keep", np.uint8, (n, -(-k // 8)))
    try:
        grid = TileGrid(_long(entry["rows"], n), _long(entry["columns"], k))
    except RecipeError as error:
        raise MaskError(f"weight '{name}' | {error}") from error
    if grid.shape != (n, k) or any(edge % 4 for edge in grid.columns[:-1]):
        raise MaskError(
            f"weight '{name}' | tile edges end at {grid.shape}, columns {grid.columns[:4]}; "
            f"expected {(n, k)} and multiples of 4 along K; make the masks again"
        )
    dense = arrays.lazy(f"{name}.dense", np.uint8, grid.tiles)
    return WeightMask(
        name=name,
        grid=grid,
        dense=dense().astype(np.bool_),
        bits=keep,
        scores=_optional(arrays, f"{name}.scores", np.float32, grid.tiles),
        digests=entry.get("sha256", {}),
        geometry=entry["geometry"],
        ties=_ties(arrays, name, grid.tiles),
    )


def _ties(
    arrays: SafetensorsFile, name: str, tiles: tuple[int, int]
) -> NDArray[np.int32] | None:
    ties = _optional(arrays, f"{name}.ties", np.int32, tiles)
    # A cut counts them: a vast number would need a vast count.
    if ties is not None and (ties.min() < 0 or ties.max() >= 2**28):
        raise MaskError(
            f"weight '{name}' | has ties from {ties.min()} to {ties.max()}; expected 0 to "
            f"{2**28 - 1}; make the masks again"
        )
    return ties


def _optional(
    arrays: SafetensorsFile, key: str, kind: Any, shape: tuple[int, int]
) -> NDArray[Any] | None:
    return arrays.lazy(key, kind, shape)() if key in arrays.names else None
