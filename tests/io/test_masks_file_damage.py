"""Every damage of masks.json and its arrays is refused in one line that says where."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from patch_compile.errors import MaskError
from patch_compile.io.masks_file import read_masks_json
from tests.support import said, saved_masks

Entry = dict[str, Any]


def edit(path: Path, change: Callable[[Entry], object]) -> None:
    index = json.loads(path.read_text("utf-8"))
    change(index)
    path.write_text(json.dumps(index), "utf-8")


def edit_arrays(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Rewrites the side file and its recorded digest, as a wrong writer would."""
    data = path.with_suffix(".safetensors")
    arrays = load_file(data)
    change(arrays)
    save_file(arrays, data)
    edit(path, lambda index: index.update(data_sha256=sha256(data)))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def refusal(path: Path) -> str:
    with pytest.raises(MaskError) as caught:
        read_masks_json(path)
    return said(caught)


def weight(index: Entry) -> Entry:
    entry: Entry = index["weights"][0]
    return entry


# What is done to the index, and what must be said about it.
INDEX_DAMAGE: list[tuple[Callable[[Entry], object], str]] = [
    (lambda i: i.update(version=2), "have version 2; this release reads version 1"),
    (lambda i: i.update(version="1"), "have version '1'"),
    (lambda i: i.update(format="other"), "format: 'patch-compile/masks' was expected"),
    (lambda i: i.pop("format"), "the whole file: 'format' is a required property"),
    (lambda i: i.pop("data"), "the whole file: 'data' is a required property"),
    (lambda i: i.pop("weights"), "the whole file: 'weights' is a required property"),
    (lambda i: i.update(data="../masks.safetensors"), "data: '../masks.safetensors' does not"),
    (lambda i: i.update(data="/etc/passwd"), "data: '/etc/passwd' does not match"),
    (lambda i: i.update(data="sub/masks.safetensors"), "data: 'sub/masks.safetensors' does"),
    (lambda i: i.update(data="a\\b.safetensors"), "data: 'a\\\\b.safetensors' does not match"),
    (lambda i: i.update(data="C:x.safetensors"), "data: 'C:x.safetensors' does not match"),
    (lambda i: i.update(data=".."), "data: '..' should not be valid"),
    (lambda i: i.update(data="."), "data: '.' should not be valid"),
    (lambda i: i.update(data=""), "data: '' does not match"),
    (lambda i: i.update(data="\u0000"), "data: '\\x00' does not match"),
    (lambda i: i.update(data="absent.safetensors"), "need 'absent.safetensors' beside them"),
    (lambda i: i.update(data_sha256="0" * 64), "its sha256 differs from the one recorded"),
    (lambda i: i.update(data_sha256="x"), "data_sha256: 'x' does not match"),
    (lambda i: i.update(weights=["a"]), "weight 0: 'a' is not of type 'object'"),
    (lambda i: i.update(weights={}), "weights: {} is not of type 'array'"),
    (lambda i: weight(i).pop("name"), "weight 0: 'name' is a required property"),
    (lambda i: weight(i).update(name=""), "weight '' name: "),
    (lambda i: weight(i).update(shape=[16]), "weight 'a.weight' shape: [16] is too short"),
    (lambda i: weight(i).update(shape=[16, 0]), "weight 'a.weight' shape 1: 0 is less than"),
    (lambda i: weight(i).update(shape=[16.0, 32]), "weight 'a.weight' shape 0: 16.0 is not"),
    (lambda i: weight(i).update(shape=[True, 32]), "weight 'a.weight' shape 0: True is not"),
    (lambda i: weight(i).update(rows=8.0), "weight 'a.weight' rows: 8.0 is not"),
    (lambda i: weight(i).update(rows=0), "weight 'a.weight' rows: 0 is less than"),
    (lambda i: weight(i).update(rows=[0, 8.0, 16]), "weight 'a.weight' rows"),
    (lambda i: weight(i).update(sha256={"int8": "0" * 64}), "weight 'a.weight' sha256"),
    (lambda i: weight(i).update(sha256={"float32": "?"}), "weight 'a.weight' sha256 float32"),
    (lambda i: i["weights"].append(weight(i)), "name a weight twice; expected each once"),
    (lambda i: i.update(made_by="me"), "made_by: 'me' is not of type 'object'"),
]


@pytest.mark.parametrize(("change", "part"), INDEX_DAMAGE, ids=[c[1] for c in INDEX_DAMAGE])
def test_damaged_index_is_refused_in_one_line(
    tmp_path: Path, change: Callable[[Entry], object], part: str
) -> None:
    path = saved_masks(tmp_path)
    edit(path, change)
    text = refusal(path)
    assert text.startswith(f"masks '{path}' | ")
    assert part in text


# Damage that names the weight rather than the file.
WEIGHT_DAMAGE: list[tuple[Callable[[Entry], object], str]] = [
    (
        lambda i: weight(i).update(shape=[16, 64]),
        "'a.weight.keep' is U8 (16, 4); expected uint8 (16, 8)",
    ),
    (
        lambda i: weight(i).update(shape=[10**15, 10**15]),
        f"'a.weight.keep' is U8 (16, 4); expected uint8 ({10**15}, {10**15 // 8})",
    ),
    (
        lambda i: weight(i).update(rows=4),
        "'a.weight.dense' is U8 (2, 4); expected uint8 (4, 4)",
    ),
    (
        lambda i: weight(i).update(columns=6),
        "weight 'a.weight' | tile edges end at (16, 32), columns (0, 6, 12, 18); expected",
    ),
    (
        lambda i: weight(i).update(columns=[0, 8, 30, 32]),
        "weight 'a.weight' | tile edges end at (16, 32), columns (0, 8, 30, 32); expected",
    ),
    (
        lambda i: weight(i).update(rows=[0, 8, 12]),
        "weight 'a.weight' | tile edges end at (12, 32)",
    ),
    (
        lambda i: weight(i).update(rows=[0, 16, 8]),
        "weight 'a.weight' | tile edges along N | are [0, 16, 8]",
    ),
    (lambda i: weight(i).update(name="z"), "lack 'z.keep'; they belong to other masks"),
]


@pytest.mark.parametrize(("change", "part"), WEIGHT_DAMAGE, ids=[c[1] for c in WEIGHT_DAMAGE])
def test_entry_that_does_not_fit_its_arrays_is_refused(
    tmp_path: Path, change: Callable[[Entry], object], part: str
) -> None:
    path = saved_masks(tmp_path)
    edit(path, change)
    assert part in refusal(path)


def cut_open_group(arrays: dict[str, Any]) -> None:
    # Tile (0, 1) of a.weight is sparse: columns 8-15 are the second byte of a row.
    arrays["a.weight.keep"][3, 1] = 0b11100011


ARRAY_DAMAGE: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (
        cut_open_group,
        "weight 'a.weight' | sparse tile (0, 1) keeps 3 of the 4 weights at row 3, columns 12",
    ),
    (lambda a: a.pop("a.weight.keep"), "lack 'a.weight.keep'; they belong to other masks"),
    (lambda a: a.pop("b.weight.dense"), "lack 'b.weight.dense'; they belong to other masks"),
    (
        lambda a: a.update({"a.weight.keep": a["a.weight.keep"].astype(np.int32)}),
        "'a.weight.keep' is I32 (16, 4); expected uint8 (16, 4)",
    ),
    (
        lambda a: a.update({"a.weight.dense": a["a.weight.dense"].astype(np.bool_)}),
        "'a.weight.dense' is BOOL (2, 4); expected uint8 (2, 4)",
    ),
    (
        lambda a: a.update({"a.weight.keep": a["a.weight.keep"].ravel()}),
        "'a.weight.keep' is U8 (64,); expected uint8 (16, 4)",
    ),
    (
        lambda a: a.update({"a.weight.scores": np.zeros((2, 4), np.float64)}),
        "'a.weight.scores' is F64 (2, 4); expected float32 (2, 4)",
    ),
    (
        lambda a: a.update({"a.weight.ties": np.zeros((4, 2), np.int32)}),
        "'a.weight.ties' is I32 (4, 2); expected int32 (2, 4)",
    ),
    (
        lambda a: a.update({"a.weight.ties": np.zeros((2, 4), np.int64)}),
        "'a.weight.ties' is I64 (2, 4); expected int32 (2, 4)",
    ),
    (
        lambda a: a.update({"a.weight.ties": np.arange(-1, 7, dtype=np.int32).reshape(2, 4)}),
        "weight 'a.weight' | has ties from -1 to 6; expected 0 to 268435455; make the masks",
    ),
    (
        lambda a: a.update({"b.weight.ties": np.array([[0, 1, 2**28]], np.int32)}),
        "weight 'b.weight' | has ties from 0 to 268435456; expected 0 to 268435455; make",
    ),
]


@pytest.mark.parametrize(("change", "part"), ARRAY_DAMAGE, ids=[c[1] for c in ARRAY_DAMAGE])
def test_arrays_of_another_kind_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], part: str
) -> None:
    path = saved_masks(tmp_path)
    edit_arrays(path, change)
    assert part in refusal(path)


def test_bits_past_the_last_column_are_refused(tmp_path: Path) -> None:
    path = saved_masks(tmp_path)

    def set_padding(arrays: dict[str, Any]) -> None:
        arrays["b.weight.keep"][5, 2] |= 0x80

    edit_arrays(path, set_padding)
    assert "weight 'b.weight' | keeps weights beyond its 20 in features" in refusal(path)


def test_one_flipped_bit_of_the_side_file_is_refused(tmp_path: Path) -> None:
    path = saved_masks(tmp_path)
    data = path.with_suffix(".safetensors")
    content = bytearray(data.read_bytes())
    content[-1] ^= 1
    data.write_bytes(content)
    text = refusal(path)
    assert "do not fit 'masks.safetensors': its sha256 differs" in text
    assert "copy both files again" in text


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_truncated_index_is_refused(tmp_path: Path, share: float) -> None:
    path = saved_masks(tmp_path)
    text = path.read_text("utf-8")
    path.write_text(text[: int(share * len(text))], "utf-8")
    assert refusal(path).startswith(f"masks '{path}' | cannot be read as JSON: ")


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[" * 100_000, b"9" * 10_000])
def test_index_that_is_hostile_json_is_refused(tmp_path: Path, content: bytes) -> None:
    path = saved_masks(tmp_path)
    path.write_bytes(content)
    assert refusal(path).startswith(f"masks '{path}' | cannot be read as JSON: ")


@pytest.mark.parametrize("content", ["[]", "null", "3", '"text"'])
def test_index_that_is_no_object_is_refused(tmp_path: Path, content: str) -> None:
    path = saved_masks(tmp_path)
    path.write_text(content)
    assert "the whole file: " in refusal(path)


def test_long_values_are_cut_out_of_the_message(tmp_path: Path) -> None:
    path = saved_masks(tmp_path)
    edit(path, lambda index: index.update(data="x/" * 10_000))
    assert len(refusal(path)) < 500


@pytest.mark.parametrize("size", [0, 4, 8, 100, -1])
def test_truncated_arrays_with_their_digest_are_refused(tmp_path: Path, size: int) -> None:
    """A digest taken after the damage must not help."""
    path = saved_masks(tmp_path)
    data = path.with_suffix(".safetensors")
    data.write_bytes(data.read_bytes()[:size])
    edit(path, lambda index: index.update(data_sha256=sha256(data)))
    assert f"masks '{data}' | are no safetensors file: " in refusal(path)


def test_arrays_cut_short_after_they_were_checked_are_refused(tmp_path: Path) -> None:
    path = saved_masks(tmp_path)
    mask = read_masks_json(path).weights["b.weight"]
    data = path.with_suffix(".safetensors")
    os.truncate(data, data.stat().st_size - 200)
    with pytest.raises(MaskError) as caught:
        mask.bits()
    assert "were changed while being read; read them again" in said(caught)


def test_side_file_behind_a_link_is_refused(tmp_path: Path) -> None:
    path = saved_masks(tmp_path)
    data = path.with_suffix(".safetensors")
    data.rename(tmp_path / "elsewhere.bin")
    data.symlink_to(tmp_path / "elsewhere.bin")
    assert "'masks.safetensors' is a symbolic link; put the file itself there" in refusal(path)


def test_folder_in_place_of_the_side_file_is_refused(tmp_path: Path) -> None:
    path = saved_masks(tmp_path)
    data = path.with_suffix(".safetensors")
    data.unlink()
    data.mkdir()
    assert "need 'masks.safetensors' beside them; copy it there" in refusal(path)


def test_unreadable_side_file_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved_masks(tmp_path)

    def refuse(_: Path) -> str:
        raise PermissionError(13, "Permission denied")

    # By hand: a test run as root may read anything.
    monkeypatch.setattr("patch_compile.io.masks_file._sha256", refuse)
    assert "masks.safetensors' | cannot be read: Permission denied" in refusal(path)
