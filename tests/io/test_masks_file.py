"""masks.json reads back what was written, byte for byte."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from patch_compile.errors import MaskError, PatchCompileError
from patch_compile.io.masks_file import (
    FORMAT,
    check_place,
    read_masks_json,
    save_masks,
    schema,
)
from patch_compile.tiles.geometry import Geometry, TileGrid
from patch_compile.tiles.masks import Masks
from patch_compile.tiles.weight_mask import WeightMask, from_keep
from tests.support import (
    contents,
    geometries,
    masks_of,
    random_mask,
    random_weight,
    said,
    same_mask,
    saved_masks,
)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 30),
    st.integers(1, 50),
    geometries(),
    st.booleans(),
    st.booleans(),
)
def test_masks_read_back_as_they_were_saved_masks(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    n: int,
    k: int,
    geometry: Geometry,
    scored: bool,
    with_digests: bool,
) -> None:
    rng = np.random.default_rng(seed)
    one = random_mask(
        rng, "a.weight", random_weight(rng, n, k), str(geometry), with_digests=with_digests
    )
    scores = rng.random(one.grid.tiles).astype(np.float32) if scored else None
    mask = from_keep(
        one.name,
        one.grid,
        one.dense,
        one.keep(),
        scores=scores,
        digests=one.digests,
        geometry=one.geometry,
    )
    path = tmp_path_factory.mktemp("masks") / "masks.json"
    save_masks(Masks({mask.name: mask}, {"method": "wanda", "seed": seed}), path)
    loaded = read_masks_json(path)
    assert loaded.made_by == {"method": "wanda", "seed": seed}
    assert list(loaded.weights) == ["a.weight"]
    same_mask(loaded.weights["a.weight"], mask)


def test_uneven_edges_read_back_as_they_were_saved_masks(tmp_path: Path) -> None:
    grid = TileGrid((0, 1, 8, 9), (0, 4, 16, 24))
    keep = np.zeros((9, 24), np.bool_)
    mask = from_keep("fused", grid, np.zeros((3, 3), np.bool_), keep)
    # A path as text will do, as everywhere in the Python API.
    save_masks(masks_of(mask), str(tmp_path / "masks.json"))
    same_mask(read_masks_json(tmp_path / "masks.json").weights["fused"], mask)


def test_ties_read_back_as_they_were_saved(tmp_path: Path) -> None:
    grid = Geometry(8, None).grid((20, 32))
    dense, keep = np.zeros((3, 1), np.bool_), np.zeros((20, 32), np.bool_)
    ties = np.array([[7], [0], [2**28 - 1]], np.int32)
    tied = from_keep("tied", grid, dense, keep, geometry="mlp:8", ties=ties)
    free = from_keep("free", grid, dense, keep)
    save_masks(masks_of(tied, free), tmp_path / "masks.json")
    loaded = read_masks_json(tmp_path / "masks.json").weights
    same_mask(loaded["tied"], tied)
    found = loaded["tied"].ties
    assert found is not None
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, ties)
    assert loaded["free"].ties is None


def test_no_masks_at_all_read_back(tmp_path: Path) -> None:
    save_masks(Masks({}), tmp_path / "masks.json")
    assert read_masks_json(tmp_path / "masks.json").weights == {}


def test_saving_writes_two_files_and_no_more(tmp_path: Path) -> None:
    path = saved_masks(tmp_path / "out")
    names = sorted(file.name for file in path.parent.iterdir())
    assert names == ["masks.json", "masks.safetensors"]
    index = json.loads(path.read_text("utf-8"))
    assert index["format"] == FORMAT
    assert index["version"] == 1
    assert index["data"] == "masks.safetensors"
    assert [(entry["rows"], entry["columns"]) for entry in index["weights"]] == [(8, 8)] * 2
    assert index["data_sha256"] == sha256(path.with_suffix(".safetensors"))


def test_saving_twice_gives_identical_bytes(tmp_path: Path) -> None:
    one, two = saved_masks(tmp_path / "one"), saved_masks(tmp_path / "two")
    assert one.read_bytes() == two.read_bytes()
    data = one.with_suffix(".safetensors").read_bytes()
    assert data == two.with_suffix(".safetensors").read_bytes()


def test_keep_bits_stay_on_disk_until_they_are_wanted(tmp_path: Path) -> None:
    path = saved_masks(tmp_path)
    mask = read_masks_json(path).weights["a.weight"]
    path.with_suffix(".safetensors").unlink()
    with pytest.raises(MaskError) as caught:
        mask.bits()
    assert "masks.safetensors' | " in said(caught)


def test_published_schema_is_valid_and_what_is_saved_obeys_it(tmp_path: Path) -> None:
    Draft202012Validator.check_schema(schema())
    index = json.loads(saved_masks(tmp_path).read_text("utf-8"))
    Draft202012Validator(schema()).validate(index)


def test_mask_that_is_not_24_is_not_saved_masks(tmp_path: Path) -> None:
    grid = TileGrid((0, 1), (0, 4))
    full = from_keep("w", grid, np.array([[False]]), np.ones((1, 4), np.bool_))
    with pytest.raises(MaskError, match="weight 'w'"):
        save_masks(masks_of(full), tmp_path / "masks.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["masks", "masks.npz", "masks.safetensors"])
def test_masks_are_saved_under_names_that_read_back(tmp_path: Path, name: str) -> None:
    with pytest.raises(MaskError) as caught:
        save_masks(Masks({}), tmp_path / name)
    assert (
        f"masks '{tmp_path / name}' | would be written as JSON; expected a name in .json"
        in (said(caught))
    )


def test_masks_replace_earlier_masks_of_their_name(tmp_path: Path) -> None:
    path = saved_masks(tmp_path)
    save_masks(Masks({}), path)
    assert read_masks_json(path).weights == {}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("masks.json", '{"architectures": ["LlamaForCausalLM"]}'),
        ("masks.json", '{"format": "patch-compile/ma'),
        ("masks.json", "[]"),
        ("masks.json", ""),
        ("masks.safetensors", "the weights of a checkpoint"),
    ],
)
def test_files_that_are_not_of_masks_are_not_replaced(
    tmp_path: Path, name: str, text: str
) -> None:
    (tmp_path / name).write_text(text)
    for write in (lambda: saved_masks(tmp_path), lambda: check_place(tmp_path / "masks.json")):
        with pytest.raises(MaskError) as caught:
            write()
        told = said(caught)
        assert told.startswith(f"masks '{tmp_path / 'masks.json'}' | would replace ")
        assert told.endswith("; move it away or choose another name")
    assert contents(tmp_path) == {name: text.encode()}


def test_arrays_of_other_masks_are_not_replaced(tmp_path: Path) -> None:
    """Renamed masks still name `masks.safetensors`."""
    path = saved_masks(tmp_path)
    path.rename(tmp_path / "renamed.json")
    (tmp_path / "masks.json").write_text(
        json.dumps({"format": FORMAT, "data": "other.safetensors"})
    )
    before = contents(tmp_path)
    with pytest.raises(MaskError, match="which no masks there name as their arrays"):
        saved_masks(tmp_path)
    assert contents(tmp_path) == before


def test_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("patch_compile.io.masks_file.write_safetensors", full)
    with pytest.raises(PatchCompileError) as caught:
        saved_masks(tmp_path)
    assert "cannot be written" in said(caught)
    assert "No space left on device" in said(caught)


def test_masks_of_a_mask_without_scores_have_none(tmp_path: Path) -> None:
    masks = read_masks_json(saved_masks(tmp_path))
    assert all(isinstance(mask, WeightMask) for mask in masks.weights.values())
    assert [mask.scores for mask in masks.weights.values()] == [None, None]
