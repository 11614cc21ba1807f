"""PATCH's and MaskLLM's files, written here by plain numpy, and what is refused in them."""

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from patch_compile.errors import MaskError
from patch_compile.io.load_masks import load_masks
from patch_compile.io.masks_npz import derive_tile_map, read_masks_npz
from patch_compile.tiles.geometry import Geometry
from tests.support import geometries, random_mask, random_weight, said

Keep = NDArray[np.bool_]
TILE = Geometry(8, 8)


def write_patch(path: Path, meta: Any = None, **keeps: Keep) -> Path:
    """What PATCH's release holds: packed flat bits, shapes, one JSON string."""
    arrays: dict[str, Any] = {}
    for name, keep in keeps.items():
        arrays[f"{name}.weight"] = np.packbits(keep.ravel())
        arrays[f"{name}.weight.__shape__"] = np.array(keep.shape, np.int64)
    if meta is not None:
        arrays["__meta__"] = np.array(json.dumps(meta))
    np.savez_compressed(path, **arrays)
    return path


def write_maskllm(path: Path, **keeps: Keep) -> Path:
    """What MaskLLM's release holds: packed flat bits under `<parameter>.mask`, no shape."""
    arrays: dict[str, Any] = {
        f"{name}.weight.mask": np.packbits(keep.ravel()) for name, keep in keeps.items()
    }
    np.savez_compressed(path, **arrays)
    return path


def keep_of(seed: int, n: int, k: int, geometry: Geometry) -> tuple[Keep, Keep]:
    """A keep mask and the tiles that drop nothing, told by a loop."""
    rng = np.random.default_rng(seed)
    grid = geometry.grid((n, k))
    keep = random_mask(rng, "w", random_weight(rng, n, k), grid, with_digests=False).keep()
    dense = np.empty(grid.tiles, np.bool_)
    for row, column in np.ndindex(grid.tiles):
        rows, columns = grid.rows[row : row + 2], grid.columns[column : column + 2]
        dense[row, column] = keep[slice(*rows), slice(*columns)].all()
    return keep, dense


def refusal(path: Path, in_features: Callable[[str], int | None] | None = None) -> str:
    with pytest.raises(MaskError) as caught:
        read_masks_npz(path, TILE, in_features)
    return said(caught)


@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(1, 50), geometries())
def test_patch_masks_and_their_tile_maps_read_back(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    n: int,
    k: int,
    geometry: Geometry,
) -> None:
    keep, dense = keep_of(seed, n, k, geometry)
    path = write_patch(tmp_path_factory.mktemp("npz") / "mask.npz", a=keep)
    mask = read_masks_npz(path, geometry).weights["a.weight"]
    mask.check()
    np.testing.assert_array_equal(mask.keep(), keep)
    np.testing.assert_array_equal(mask.dense, dense)
    assert mask.grid == geometry.grid((n, k))
    assert mask.geometry == str(geometry)


@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(8, 50))
def test_maskllm_masks_take_their_in_features_from_the_model(
    tmp_path_factory: pytest.TempPathFactory, seed: int, n: int, k: int
) -> None:
    keep, dense = keep_of(seed, n, k, TILE)
    path = write_maskllm(tmp_path_factory.mktemp("npz") / "mask_compressed.npz", a=keep)
    masks = read_masks_npz(path, TILE, {"a.weight": k}.get)
    assert masks.made_by == {"format": "MaskLLM"}
    np.testing.assert_array_equal(masks.weights["a.weight"].keep(), keep)
    np.testing.assert_array_equal(masks.weights["a.weight"].dense, dense)


def test_maskllm_names_without_weight_get_it(tmp_path: Path) -> None:
    keep, _ = keep_of(0, 8, 16, TILE)
    path = tmp_path / "m.npz"
    arrays: dict[str, Any] = {"model.layers.0.mlp.up_proj.mask": np.packbits(keep.ravel())}
    np.savez(path, **arrays)
    masks = read_masks_npz(path, TILE, lambda _: 16)
    assert list(masks.weights) == ["model.layers.0.mlp.up_proj.weight"]


def test_every_weight_of_a_file_and_its_meta_are_read(tmp_path: Path) -> None:
    keep, _ = keep_of(0, 16, 32, TILE)
    meta = {"repo": "r", "sparsity": 0.25}
    path = write_patch(tmp_path / "mask.npz", meta, a=keep, b=~keep | keep)
    masks = load_masks(path, tile="8x8")
    assert list(masks.weights) == ["a.weight", "b.weight"]
    assert masks.made_by == meta
    assert masks.weights["b.weight"].dense.all()


def test_keep_bits_stay_on_disk_until_they_are_wanted(tmp_path: Path) -> None:
    keep, _ = keep_of(0, 16, 32, TILE)
    path = write_patch(tmp_path / "mask.npz", a=keep)
    mask = read_masks_npz(path, TILE).weights["a.weight"]
    path.unlink()
    with pytest.raises(MaskError) as caught:
        mask.bits()
    assert f"masks '{path}' | " in said(caught)


def test_wrong_tile_size_is_refused_with_the_tile(tmp_path: Path) -> None:
    """Read with 16-tiles, a dense and a sparse 8-tile share one that is neither."""
    keep = np.ones((16, 16), np.bool_)
    keep[:8, :8] = np.tile([True, True, False, False], (8, 2))
    path = write_patch(tmp_path / "mask.npz", a=keep)
    assert load_masks(path, tile="8x8").weights["a.weight"].dense.tolist() == [
        [False, True],
        [True, True],
    ]
    with pytest.raises(MaskError) as caught:
        load_masks(path, tile="16x16")
    assert said(caught) == (
        "weight 'a.weight' | tile (0, 0) of 16x16 is neither dense nor 2:4; give the tile "
        "size the masks were made with (--tile)"
    )


def test_unstructured_tile_is_named_by_its_row_and_column() -> None:
    keep = np.ones((24, 24), np.bool_)
    keep[17, 9] = False
    with pytest.raises(MaskError, match=r"weight 'w' \| tile \(2, 1\) of 8x8 is neither"):
        derive_tile_map("w", keep, TILE)


class Bomb:
    """An object whose pickle makes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_pickle_of_these_tests_goes_off_when_it_is_read(tmp_path: Path) -> None:
    """Else the two tests below could not fail."""
    np.savez(tmp_path / "m.npz", a=np.array([Bomb(tmp_path / "boom")], object))
    with np.load(tmp_path / "m.npz", allow_pickle=True) as archive:
        assert archive["a"].shape == (1,)
    assert (tmp_path / "boom").exists()


@pytest.mark.parametrize("key", ["a.weight", "a.weight.__shape__", "__meta__"])
def test_pickled_member_is_refused_and_never_run(tmp_path: Path, key: str) -> None:
    keep, _ = keep_of(0, 8, 16, TILE)
    arrays: dict[str, Any] = {
        "a.weight": np.packbits(keep.ravel()),
        "a.weight.__shape__": np.array(keep.shape),
        key: np.array([Bomb(tmp_path / "boom")], object),
    }
    np.savez(tmp_path / "m.npz", **arrays)
    text = refusal(tmp_path / "m.npz")
    assert "are no safe .npz file: Object arrays cannot be loaded" in text
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize("protocol", [0, 4])
def test_pickle_under_the_name_of_an_npz_is_refused_and_never_run(
    tmp_path: Path, protocol: int
) -> None:
    path = tmp_path / "m.npz"
    path.write_bytes(pickle.dumps(Bomb(tmp_path / "boom"), protocol=protocol))
    assert refusal(path).startswith(f"masks '{path}' | are no safe .npz file: ")
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncated_zip_is_refused(tmp_path: Path, share: float) -> None:
    keep, _ = keep_of(0, 16, 32, TILE)
    path = write_patch(tmp_path / "mask.npz", a=keep)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert refusal(path).startswith(f"masks '{path}' | are no safe .npz file: ")


def test_zip_damaged_anywhere_is_one_line_or_the_same_masks(tmp_path: Path) -> None:
    """Some bytes of a zip, such as time stamps, mean nothing to us."""
    keep, _ = keep_of(0, 16, 32, TILE)
    path = write_patch(tmp_path / "mask.npz", a=keep)
    content = path.read_bytes()
    refused = []
    for at in range(0, len(content), 3):
        damaged = bytearray(content)
        damaged[at] ^= 0xFF
        path.write_bytes(damaged)
        try:
            read = read_masks_npz(path, TILE).weights["a.weight"].keep()
            np.testing.assert_array_equal(read, keep)
        except MaskError as error:
            refused.append(str(error))
    assert len(refused) > len(content) // 6
    assert not any("\n" in text for text in refused)


def test_single_array_under_the_name_of_an_npz_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.npz"
    with path.open("wb") as file:
        np.save(file, np.ones(3))
    assert refusal(path) == (
        f"masks '{path}' | are no safe .npz file: it holds one array, not an archive of them"
    )


def test_member_that_is_no_array_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.weight.__shape__", b"8, 16")
    assert "'a.weight.__shape__' is no array" in refusal(path)


def test_member_that_claims_a_vast_array_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.npz"
    header = io.BytesIO()
    vast = {"descr": "<i8", "fortran_order": False, "shape": (2**50,)}
    np.lib.format.write_array_header_1_0(header, vast)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.weight.__shape__.npy", header.getvalue())
    assert refusal(path).startswith(f"masks '{path}' | are no safe .npz file: ")


def test_archive_of_something_else_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", weight=np.ones(3))
    assert refusal(tmp_path / "m.npz") == (
        f"masks '{tmp_path / 'm.npz'}' | hold neither '<name>.__shape__' (PATCH) nor "
        "'<name>.mask' (MaskLLM); found ['weight']"
    )


GOOD = np.packbits(np.ones((8, 16), np.bool_).ravel())

DAMAGE: list[tuple[dict[str, Any], str]] = [
    (
        {"a.weight": GOOD, "a.weight.__shape__": np.array([8, 16]), "b.weight": GOOD},
        "weight 'b.weight' | has a mask but no '.__shape__' in",
    ),
    (
        {"a.weight.__shape__": np.array([8, 16])},
        "weight 'a.weight' | has a shape but no mask in",
    ),
    (
        {"a.weight": GOOD, "a.weight.__shape__": np.array([8, 16, 1])},
        "weight 'a.weight' | '.__shape__' is int64 [8, 16, 1]; expected (N, K)",
    ),
    (
        {"a.weight": GOOD, "a.weight.__shape__": np.array([8.0, 16.0])},
        "weight 'a.weight' | '.__shape__' is float64 [8.0, 16.0]; expected (N, K)",
    ),
    (
        {"a.weight": GOOD, "a.weight.__shape__": np.array([-8, -16])},
        "weight 'a.weight' | '.__shape__' is int64 [-8, -16]; expected (N, K)",
    ),
    (
        {"a.weight": GOOD, "a.weight.__shape__": np.zeros((2, 40), np.int64)},
        "weight 'a.weight' | '.__shape__' is int64 (2, 40); expected (N, K)",
    ),
    (
        {"a.weight": GOOD, "a.weight.__shape__": np.array([8, 32])},
        "weight 'a.weight' | packed mask is uint8 (16,); expected 32 bytes for shape (8, 32)",
    ),
    (
        {"a.weight": GOOD, "a.weight.__shape__": np.array([2**40, 2**40])},
        f"'.__shape__' is {(2**40, 2**40)}; expected at most {2**31 - 1} weights",
    ),
    (
        {"a.weight": GOOD.astype(np.int64), "a.weight.__shape__": np.array([8, 16])},
        "weight 'a.weight' | packed mask is int64 (16,); expected 16 bytes",
    ),
    (
        {"a.weight": GOOD.reshape(4, 4), "a.weight.__shape__": np.array([8, 16])},
        "weight 'a.weight' | packed mask is uint8 (4, 4); expected 16 bytes",
    ),
    (
        {
            "a.weight": GOOD,
            "a.weight.__shape__": np.array([8, 16]),
            "__meta__": np.array("{"),
        },
        "'__meta__' is no JSON: ",
    ),
]


@pytest.mark.parametrize(("arrays", "part"), DAMAGE, ids=[part for _, part in DAMAGE])
def test_damaged_patch_file_is_refused_in_one_line(
    tmp_path: Path, arrays: dict[str, Any], part: str
) -> None:
    np.savez(tmp_path / "m.npz", **arrays)
    assert part in refusal(tmp_path / "m.npz")


def test_maskllm_mask_without_a_model_is_refused(tmp_path: Path) -> None:
    keep, _ = keep_of(0, 8, 16, TILE)
    path = write_maskllm(tmp_path / "m.npz", a=keep)
    expected = "weight 'a.weight' | MaskLLM's file stores no shape, and the model has no such"
    assert refusal(path).startswith(expected)
    assert refusal(path, lambda _: None).startswith(expected)


def test_maskllm_mask_of_another_model_is_refused(tmp_path: Path) -> None:
    keep, _ = keep_of(0, 8, 16, TILE)
    path = write_maskllm(tmp_path / "m.npz", a=keep)
    assert refusal(path, lambda _: 24) == (
        "weight 'a.weight' | holds 128 bits, no multiple of its 24 in features; the masks "
        "belong to another model"
    )
    assert "holds 128 bits, no multiple of its 1000" in refusal(path, lambda _: 1000)


def test_maskllm_array_of_another_type_is_refused(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {"a.weight.mask": np.ones((8, 16), np.float32)}
    np.savez(tmp_path / "m.npz", **arrays)
    text = refusal(tmp_path / "m.npz", lambda _: 16)
    assert "weight 'a.weight' | packed mask is float32 (8, 16)" in text


def test_npz_in_memory_is_what_the_authors_write() -> None:
    """Their reader in three lines: if this fails, the writers above are wrong."""
    keep, _ = keep_of(0, 8, 16, TILE)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, w=np.packbits(keep.ravel()), shape=np.array(keep.shape))
    buffer.seek(0)
    with np.load(buffer) as archive:
        read = np.unpackbits(archive["w"])[: keep.size].reshape(archive["shape"])
    np.testing.assert_array_equal(read.astype(np.bool_), keep)
