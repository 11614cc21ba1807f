"""What a compile writes: every weight read once, files of the size asked for, all or none."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from patch_compile.compiler import compile_model
from patch_compile.errors import MaskError, ModelError, RecipeError
from patch_compile.io.onnx_model import FileRows
from patch_compile.recipe import CompileRecipe
from tests.support import (
    FLOATS,
    Linear,
    band_mask,
    digests_said,
    linear_model,
    masks_of,
    random_mask,
    random_weight,
    run_ort,
    said,
    three_linears,
)


def sizes(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_size for file in folder.glob("*.data")}


@pytest.mark.parametrize("checked", [False, True])
def test_every_weight_is_read_once_digests_included(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, checked: bool
) -> None:
    path, masks, weights = three_linears(tmp_path, rng, external=True)
    compiled = compile_model(path, masks, CompileRecipe(check_digests=checked))
    read = FileRows.__getitem__
    elements = 0

    def counted(self: FileRows, rows: slice) -> NDArray[Any]:
        nonlocal elements
        array = read(self, rows)
        elements += array.size
        return array

    monkeypatch.setattr(FileRows, "__getitem__", counted)
    compiled.save(tmp_path / "out")
    assert elements == sum(weight.size for weight in weights.values())


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_sharded_model_computes_the_same(
    tmp_path: Path, rng: np.random.Generator, dtype: str
) -> None:
    arrays = {name: random_weight(rng, 32, 48, dtype) for name in "abc"}
    path = linear_model([Linear(n, w) for n, w in arrays.items()], tmp_path / "m.onnx")
    masks = masks_of(*(band_mask(rng, f"{n}.weight", w) for n, w in arrays.items()))
    one = compile_model(path, masks, CompileRecipe(lowering="columns"))
    many = compile_model(path, masks, CompileRecipe(lowering="columns", max_shard="4KB"))
    first, second = one.save(tmp_path / "one"), many.save(tmp_path / "many")
    assert list(sizes(tmp_path / "one")) == ["compiled.onnx.data"]
    found = sizes(tmp_path / "many")
    assert len(found) > 1
    assert max(found.values()) <= 4000
    assert sum(found.values()) == sum(sizes(tmp_path / "one").values())
    x = rng.standard_normal((1, 2, 48)).astype(FLOATS[dtype][0])
    expected = run_ort(first, {"x": x}, optimise=False)
    for name, value in run_ort(second, {"x": x}, optimise=False).items():
        np.testing.assert_array_equal(value, expected[name])


def test_data_of_an_earlier_run_goes_when_the_number_of_files_changes(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    path, masks, _ = three_linears(tmp_path, rng)
    out = tmp_path / "out"
    out.mkdir()
    (out / "other.onnx.data").write_bytes(b"mine")
    for shard, count in (("4KB", None), (None, 1), ("6KB", None)):
        compile_model(path, masks, CompileRecipe(max_shard=shard)).save(out)
        found = sizes(out)
        assert found.pop("other.onnx.data") == 4
        assert count in (None, len(found))
        assert all(name.endswith(f"-of-{len(found):05}.data") for name in found) or count
        run_ort(out / "compiled.onnx", {"x": np.zeros((1, 1, 48), np.float32)}, optimise=False)


def test_shards_of_the_input_itself_are_never_replaced(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    path, masks, _ = three_linears(tmp_path, rng)
    first = compile_model(
        path, masks, CompileRecipe(max_shard="4KB", include=("cut.*", "a.*"))
    )
    out = first.save(tmp_path / "out")
    before = {file: file.read_bytes() for file in out.parent.iterdir()}
    again = compile_model(out, masks, CompileRecipe(include=("cut.*", "a.*")))
    with pytest.raises(ModelError, match="holds the input itself"):
        again.save(out.parent)
    assert {file: file.read_bytes() for file in out.parent.iterdir()} == before


@pytest.mark.parametrize("text", ["", "2", "GB", "0GB", "-1GB", "2TB", "2gb", "1e3MB"])
def test_size_that_is_none_is_one_line(text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        CompileRecipe(max_shard=text)
    assert said(caught) == (f"max-shard | is '{text}'; expected a size, as in 2GB or 500MB")


@pytest.mark.parametrize(
    ("text", "size"),
    [("2GB", 2 * 10**9), ("1.5GB", 15 * 10**8), ("500 MB", 5 * 10**8), ("7B", 7)],
)
def test_sizes_are_powers_of_ten(text: str, size: int) -> None:
    assert CompileRecipe(max_shard=text).shard_bytes == size


# Digests


@pytest.mark.parametrize("form", ["matmul", "gemm_b"])
@pytest.mark.parametrize("n", [4, 32])
def test_digests_of_weights_of_any_size_are_compared(
    tmp_path: Path, rng: np.random.Generator, form: str, n: int
) -> None:
    """The pieces of the smaller one lie in the .onnx file, and no stream reads them."""
    weight = random_weight(rng, n, 12)
    mask = random_mask(rng, "fc.weight", weight, "weight", dense=np.array([[False]]))
    path = linear_model([Linear("fc", weight, form)], tmp_path / "m.onnx", lead=(3,))
    out = compile_model(path, masks_of(mask)).save(tmp_path / "out")
    assert digests_said(out) == {"match"}
    weight[0, 0] += 1
    path = linear_model([Linear("fc", weight, form)], tmp_path / "n.onnx", lead=(3,))
    with pytest.raises(MaskError, match="differs from the weight its mask was made for"):
        compile_model(path, masks_of(mask)).save(tmp_path / "other")


@pytest.mark.parametrize("form", ["matmul", "gemm_b"])
@pytest.mark.parametrize("changed", [None, 0, 1, 2])
def test_each_part_of_a_fused_weight_has_its_digest(
    tmp_path: Path,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    form: str,
    changed: int | None,
) -> None:
    """Strips of a few rows: a part ends within one where the rows are those of N."""
    monkeypatch.setattr("patch_compile.io.stored_weight._STRIP_BYTES", 500)
    heights = {"q_proj": 24, "k_proj": 10, "v_proj": 6}
    parts = {name: random_weight(rng, n, 16) for name, n in heights.items()}
    masks = masks_of(
        *(random_mask(rng, f"l.{n}.weight", w, "weight", 0.0) for n, w in parts.items())
    )
    if changed is not None:
        list(parts.values())[changed][-1, -1] += 1
    fused = np.concatenate(list(parts.values()))
    path = linear_model(
        [Linear("l.qkv_proj", fused, form)], tmp_path / "m.onnx", lead=(3,), external=True
    )
    compiled = compile_model(path, masks)
    if changed is None:
        out = compiled.save(tmp_path / "out")
        assert digests_said(out) == {"match"}
        return
    name = list(parts)[changed]
    with pytest.raises(MaskError, match=rf"weight 'l\.{name}\.weight' \| differs"):
        compiled.save(tmp_path / "out")
