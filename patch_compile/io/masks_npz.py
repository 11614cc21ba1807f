"""Mask files of PATCH (`mask.npz`) and MaskLLM (`mask_compressed.npz`).

Both hold one `np.packbits` array a weight, high bit first, of the flat keep mask. PATCH adds
`<name>.__shape__` and `__meta__` (JSON); MaskLLM stores no shape, so the reader asks for the
in features. Neither stores a tile map: it is derived from a geometry. N, K: out, in features.
"""

import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from patch_compile.errors import MaskError
from patch_compile.io.unchanged import Signature, signature
from patch_compile.parsing import parse_json
from patch_compile.tiles.geometry import Geometry
from patch_compile.tiles.inspect import group_counts
from patch_compile.tiles.masks import Masks
from patch_compile.tiles.pattern import pack_keep
from patch_compile.tiles.weight_mask import WeightMask

__all__ = ["derive_tile_map", "read_masks_npz"]

InFeatures = Callable[[str], int | None]
Wanted = Callable[[list[str]], list[str]]

# What a damaged archive makes numpy, zipfile and zlib raise: MemoryError and OverflowError for
# a header that claims a vast array, TokenError for one that is no Python, the last two for a
# method or an encryption that zipfile does not know.
_DAMAGE = (
    OSError,
    ValueError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    MemoryError,
    OverflowError,
    TokenError,
    NotImplementedError,
    RuntimeError,
)

# TensorRT takes no tensor of more elements, and no matrix of a language model has as many: an
# archive of a few megabytes that claims more is a bomb.
_MOST_WEIGHTS = 2**31 - 1
_MOST_META = 2**20
# What the .npy format puts before the data.
_HEADER = 2**17

_SHAPE = ".__shape__"
_MASKLLM = ".mask"


def read_masks_npz(
    path: Path,
    geometry: Geometry,
    in_features: InFeatures | None = None,
    wanted: Wanted | None = None,
) -> Masks:
    """Reads PATCH's or MaskLLM's released masks and derives the tile maps.

    Args:
        path: the .npz file; objects that need pickle are refused.
        geometry: the tiles to look for.
        in_features: K by parameter name, for MaskLLM's files.
        wanted: picks from the parameter names; the others are not read.

    Raises:
        MaskError: one line that names the file or weight, the value and the mending.
    """
    with _opened(path) as archive:
        return _masks(path, archive, geometry, in_features, wanted or list)


@dataclass(frozen=True)
class _Archive:
    """An open .npz file; every read of it may find damage.

    Attributes:
        arrays: read when they are asked for.
        sizes: bytes of every member once it is unpacked, by its name in the archive.
    """

    arrays: Mapping[str, Any]
    sizes: Mapping[str, int]

    def __getitem__(self, key: str) -> NDArray[Any]:
        size = self.sizes.get(f"{key}.npy", self.sizes.get(key, 0))
        most = _MOST_META if key == "__meta__" else _MOST_WEIGHTS // 8 + 1
        if size > most + _HEADER:
            raise ValueError(f"'{key}' unpacks to {size} bytes; expected {most} at most")
        array = self.arrays[key]
        # numpy hands out members that are no .npy file as bytes.
        if not isinstance(array, np.ndarray):
            raise ValueError(f"'{key}' is no array")  # noqa: TRY004 - as numpy reports damage
        return array


@contextmanager
def _opened(path: Path) -> Iterator[_Archive]:
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if not isinstance(loaded, NpzFile):
                raise ValueError("it holds one array, not an archive of them")  # noqa: TRY004
            with loaded:
                members = zipfile.ZipFile(file).infolist()
                yield _Archive(
                    loaded, {member.filename: member.file_size for member in members}
                )
    except _DAMAGE as error:
        raise MaskError(f"masks '{path}' | are no safe .npz file: {error}") from error


def _masks(
    path: Path,
    archive: _Archive,
    geometry: Geometry,
    in_features: InFeatures | None,
    wanted: Wanted,
) -> Masks:
    keys = set(archive.arrays)
    patch = sorted(key.removesuffix(_SHAPE) for key in keys if key.endswith(_SHAPE))
    maskllm = sorted(key.removesuffix(_MASKLLM) for key in keys if key.endswith(_MASKLLM))
    if patch:
        _check_shapes_known(path, keys, patch)
        made_by = _meta(path, archive) if "__meta__" in keys else {}
        named = {name: (name, _patch_shape(archive, name)) for name in wanted(patch)}
    elif maskllm:
        made_by = {"format": "MaskLLM"}
        keyed = {_parameter(name): name for name in maskllm}
        named = {
            parameter: (
                keyed[parameter] + _MASKLLM,
                _maskllm_shape(archive, keyed[parameter], in_features),
            )
            for parameter in wanted(list(keyed))
        }
    else:
        raise MaskError(
            f"masks '{path}' | hold neither '<name>{_SHAPE}' (PATCH) nor '<name>{_MASKLLM}' "
            f"(MaskLLM); found {sorted(keys)[:3]}"
        )
    made = {
        name: _mask(path, archive, name, key, shape, geometry)
        for name, (key, shape) in named.items()
    }
    return Masks(made, made_by)


def _check_shapes_known(path: Path, keys: set[str], named: Sequence[str]) -> None:
    known = {"__meta__", *named, *(name + _SHAPE for name in named)}
    if unknown := sorted(keys - known):
        raise MaskError(
            f"weight '{unknown[0]}' | has a mask but no '{_SHAPE}' in '{path}'; expected both"
        )


def _parameter(name: str) -> str:
    return name if name.endswith(".weight") else f"{name}.weight"


def _meta(path: Path, archive: _Archive) -> dict[str, Any]:
    text = str(archive["__meta__"][()])
    try:
        meta = parse_json(text)
    except ValueError as error:
        raise MaskError(f"masks '{path}' | '__meta__' is no JSON: {error}") from error
    return dict(meta) if isinstance(meta, dict) else {"meta": meta}


def _patch_shape(archive: _Archive, name: str) -> tuple[int, int]:
    shape = archive[name + _SHAPE]
    if shape.shape != (2,) or shape.dtype.kind not in "iu" or (shape < 1).any():
        value = shape.tolist() if shape.size < 8 else shape.shape
        raise MaskError(
            f"weight '{name}' | '{_SHAPE}' is {shape.dtype} {value}; expected (N, K)"
        )
    n, k = int(shape[0]), int(shape[1])
    if n * k > _MOST_WEIGHTS:
        raise MaskError(
            f"weight '{name}' | '{_SHAPE}' is {(n, k)}; expected at most {_MOST_WEIGHTS} "
            "weights; the file is damaged"
        )
    return n, k


def _maskllm_shape(
    archive: _Archive, name: str, in_features: InFeatures | None
) -> tuple[int, int]:
    k = in_features(_parameter(name)) if in_features is not None else None
    if k is None:
        raise MaskError(
            f"weight '{name}' | MaskLLM's file stores no shape, and the model has no such "
            "weight to take it from; give the model that the masks belong to"
        )
    numel = archive[name + _MASKLLM].size * 8
    # packbits pads the last byte, so up to 7 of these are no weights.
    n = numel // k
    if n < 1 or numel - n * k > 7:
        raise MaskError(
            f"weight '{name}' | holds {numel} bits, no multiple of its {k} in features; "
            "the masks belong to another model"
        )
    return n, k


def _mask(
    path: Path,
    archive: _Archive,
    name: str,
    key: str,
    shape: tuple[int, int],
    geometry: Geometry,
) -> WeightMask:
    if key not in archive.arrays:
        raise MaskError(f"weight '{name}' | has a shape but no mask in '{path}'")
    keep = _keep(name, archive[key], shape)
    grid = geometry.grid(shape)
    dense = derive_tile_map(name, keep, geometry)
    bits = partial(_reread, path, name, key, shape, signature(path))
    return WeightMask(name, grid, dense, bits, geometry=str(geometry))


def _reread(
    path: Path, name: str, key: str, shape: tuple[int, int], opened: Signature
) -> NDArray[np.uint8]:
    if signature(path) != opened:
        raise MaskError(f"masks '{path}' | were changed while being read; read them again")
    with _opened(path) as archive:
        return pack_keep(_keep(name, archive[key], shape))


def _keep(name: str, packed: NDArray[Any], shape: tuple[int, int]) -> NDArray[np.bool_]:
    numel = shape[0] * shape[1]
    if packed.dtype != np.uint8 or packed.ndim != 1 or packed.size != -(-numel // 8):
        raise MaskError(
            f"weight '{name}' | packed mask is {packed.dtype} {packed.shape}; expected "
            f"{-(-numel // 8)} bytes for shape {shape}"
        )
    return np.unpackbits(packed, count=numel).view(np.bool_).reshape(shape)


def derive_tile_map(
    name: str, keep: NDArray[np.bool_], geometry: Geometry
) -> NDArray[np.bool_]:
    """Finds the dense tiles of a keep mask, bool (N, K): those that drop nothing.

    Raises:
        MaskError: if a tile drops something and yet is not 2:4.
    """
    grid = geometry.grid((keep.shape[0], keep.shape[1]))
    starts = [edge // 4 for edge in grid.columns[:-1]]
    by_row = np.maximum.reduceat(group_counts(keep, 1), grid.rows[:-1], axis=0)
    sparse = np.maximum.reduceat(by_row, starts, axis=1) <= 2
    dense: NDArray[np.bool_] = grid.total(keep) == grid.areas
    neither = ~(sparse | dense)
    if neither.any():
        row, column = np.argwhere(neither)[0]
        raise MaskError(
            f"weight '{name}' | tile ({row}, {column}) of {geometry} is neither dense nor "
            "2:4; give the tile size the masks were made with (--tile)"
        )
    return dense
