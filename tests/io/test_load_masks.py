"""One door: the ending of the name decides, and what is no mask file says so."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from patch_compile.errors import MaskError, RecipeError
from patch_compile.io.load_masks import load_masks
from patch_compile.io.masks_file import save_masks
from tests.support import masks_of, random_mask, random_weight, said, same_mask


def test_json_and_npz_of_one_mask_are_the_same(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    mask = random_mask(rng, "a.weight", random_weight(rng, 16, 32), "8x8", with_digests=False)
    save_masks(masks_of(mask), tmp_path / "masks.json")
    arrays: dict[str, Any] = {
        "a.weight": np.packbits(mask.keep().ravel()),
        "a.weight.__shape__": np.array(mask.shape),
    }
    np.savez(tmp_path / "mask.npz", **arrays)
    one = load_masks(str(tmp_path / "masks.json"))
    two = load_masks(tmp_path / "mask.npz", tile="8x8")
    same_mask(one.weights["a.weight"], two.weights["a.weight"])


@pytest.mark.parametrize("name", ["absent.json", "absent.npz", "folder", ""])
def test_what_is_no_file_says_so(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(MaskError) as caught:
        load_masks(tmp_path / name)
    assert said(caught) == (
        f"masks '{tmp_path / name}' | is not a file; give masks.json, a .npz, or 'infer'"
    )


@pytest.mark.parametrize("ending", [".pt", ".bin", ".pkl", ".safetensors", ""])
def test_other_endings_are_refused_unread(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"mask{ending}"
    path.write_bytes(b"\x80\x04N.")
    with pytest.raises(MaskError) as caught:
        load_masks(path)
    assert f"end in '{ending}'; expected .json or .npz" in said(caught)


def test_bad_tile_is_the_recipe_s_fault(tmp_path: Path) -> None:
    np.savez(tmp_path / "mask.npz", x=np.ones(1))
    with pytest.raises(RecipeError, match=r"tile '8by8' \| is not a geometry"):
        load_masks(tmp_path / "mask.npz", tile="8by8")
