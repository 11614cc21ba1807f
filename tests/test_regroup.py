"""A regrouped model computes what its new masks say, and the report says what that cost."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from patch_compile import masking
from patch_compile.compiler import compile_model
from patch_compile.errors import RecipeError
from patch_compile.expected import masked_tensors
from patch_compile.recipe import CompileRecipe
from patch_compile.tiles.masks import Masks
from patch_compile.tiles.pattern import top2_of_4
from tests.support import Linear, linear_model, random_mask, random_weight, run_ort


@pytest.mark.parametrize("form", ["matmul", "gemm_b"])
def test_regrouped_weights_keep_their_patterns_and_the_larger_of_the_rest(
    tmp_path: Path, rng: np.random.Generator, form: str
) -> None:
    check_regrouped(tmp_path, rng, form)


def test_planted_mutant_that_keeps_the_smaller_is_caught(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(masking, "top2_of_4", lambda sizes: top2_of_4(-sizes))
    with pytest.raises(AssertionError):
        check_regrouped(tmp_path, rng, "matmul")


def check_regrouped(tmp_path: Path, rng: np.random.Generator, form: str) -> None:
    weight = random_weight(rng, 48, 64)
    lead = ("tokens",) if form == "gemm_b" else ("batch", "sequence")
    path = linear_model([Linear("a", weight, form)], tmp_path / "model.onnx", lead=lead)
    dense = np.zeros((6, 4), np.bool_)
    dense[np.arange(6), np.arange(6) % 4] = True
    mask = random_mask(rng, "a.weight", weight, "8x16", dense=dense)
    mask = replace(mask, scores=rng.random((6, 4)).astype(np.float32))
    masks = Masks({mask.name: mask})
    plain = compile_model(path, masks)
    recipe = CompileRecipe(regroup=True)
    compiled = compile_model(path, masks, recipe)
    assert compiled.report.totals["macs_kept"] < plain.report.totals["macs_kept"]
    facts = compiled.report.made_by["regroup"]
    assert facts["weights"] == 1
    assert facts["loss_after"] > 0 < facts["loss_before"]
    (told,) = compiled.report.weights
    assert told.eligible == 1
    assert told.geometry in ("8x16 in bands", "8x16 in strips")
    out = compiled.save(tmp_path / "out")
    # The reference that `verify` takes: the same masks, made again from the report.
    (tensor,), _ = masked_tensors(path, out, masks)
    keep = tensor.keep()
    lines = keep.reshape(48, 16, 4).sum(axis=2)
    assert set(np.unique(lines)) == {2, 4}
    sparse = lines == 2
    old = ~np.repeat(np.repeat(dense, 8, axis=0), 4, axis=1)
    kept = keep.reshape(48, 16, 4)
    assert (kept == mask.keep().reshape(48, 16, 4))[sparse & old].all()
    sizes = np.abs(weight).reshape(48, 16, 4)[sparse & ~old]
    chosen = kept[sparse & ~old]
    assert (np.where(chosen, sizes, 9).min(1) >= np.where(chosen, 0, sizes).max(1)).all()
    x = rng.standard_normal((5, 64) if form == "gemm_b" else (1, 5, 64)).astype(np.float32)
    found = run_ort(out, {"x": x}, optimise=True)["y_a"]
    # Sums of 64 products of numbers below 5.
    np.testing.assert_allclose(found, x @ (weight * keep).T, rtol=1e-5, atol=1e-4)


def test_regroup_with_a_cast_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"regroup \| chooses weights by size"):
        CompileRecipe(regroup=True, dtype="fp16")
