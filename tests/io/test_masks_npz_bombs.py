"""Archives that claim more than there is, or that change while they are open."""

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from patch_compile.errors import MaskError
from patch_compile.io.masks_npz import read_masks_npz
from patch_compile.tiles.geometry import Geometry
from tests.support import said


def test_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "mask.npz"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("w.mask.npy", "w", force_zip64=True) as member,
    ):
        for _ in range(300):
            member.write(bytes(2**20))
    assert path.stat().st_size < 2**19
    with pytest.raises(MaskError) as caught:
        read_masks_npz(path, Geometry.parse("8x8"), lambda _: 8)
    assert "'w.mask' unpacks to 314572800 bytes; expected 268435456 at most" in said(caught)


def test_shape_of_more_weights_than_any_tensor_has_is_refused(tmp_path: Path) -> None:
    shape = np.array([2**20, 2**20])
    np.savez(tmp_path / "mask.npz", **{"w": np.zeros(8, np.uint8), "w.__shape__": shape})
    with pytest.raises(MaskError) as caught:
        read_masks_npz(tmp_path / "mask.npz", Geometry.parse("8x8"))
    assert "expected at most 2147483647 weights" in said(caught)


def test_archive_that_is_replaced_after_it_was_opened_is_refused(tmp_path: Path) -> None:
    keep = np.packbits(np.ones(64, np.bool_))
    path = tmp_path / "mask.npz"
    np.savez(path, **{"w": keep, "w.__shape__": np.array([8, 8])})
    mask = read_masks_npz(path, Geometry.parse("8x8")).weights["w"]
    np.savez(path, **{"w": keep * 0, "w.__shape__": np.array([8, 8])})
    os.utime(path, (0, 0))
    with pytest.raises(MaskError, match="were changed while being read"):
        mask.bits()
