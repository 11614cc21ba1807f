"""What the compiler chooses, reports, checks and takes masks from."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from patch_compile.compiler import compile_model, plan_model
from patch_compile.errors import MaskError, ModelError, RecipeError
from patch_compile.io.masks_file import save_masks
from patch_compile.io.onnx_model import load_model
from patch_compile.recipe import CompileRecipe
from patch_compile.tiles.geometry import Geometry
from patch_compile.tiles.masks import Masks
from patch_compile.tiles.plan import Plan
from patch_compile.tiles.weight_mask import from_keep
from tests.support import (
    FLOATS,
    Linear,
    band_mask,
    contents,
    digests_said,
    linear_model,
    masked_product,
    masks_of,
    random_mask,
    random_weight,
    run_ort,
    said,
    three_linears,
)

# float32 sums of at most 48 products of numbers below 4 in another order.
TOLERANCE = 1e-4

FREE = CompileRecipe(min_gain=0.0)


def reason(call: Callable[[], object], error: type[Exception] = MaskError) -> str:
    with pytest.raises(error) as caught:
        call()
    return said(caught)


# What is chosen


def lowerings(report: Any) -> dict[str, str]:
    return {weight.weight: weight.lowering for weight in report.weights}


def test_patterns_that_leave_no_mask_are_refused(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    path, masks, _ = three_linears(tmp_path, rng)
    with pytest.raises(RecipeError, match="leave none of 3 masks"):
        compile_model(path, masks, CompileRecipe(include=("A.*",)))


@pytest.mark.parametrize(
    ("include", "ignore", "taken"),
    [
        ((), (), ["c.weight", "a.weight", "b.weight"]),
        (("a.*",), (), ["a.weight"]),
        ((), ("a.*", "b.*"), ["c.weight"]),
        (("re:^[ab]",), ("b.weight",), ["a.weight"]),
    ],
)
def test_include_and_ignore_choose_masks_by_name(
    tmp_path: Path,
    rng: np.random.Generator,
    include: tuple[str, ...],
    ignore: tuple[str, ...],
    taken: list[str],
) -> None:
    path, masks, _ = three_linears(tmp_path, rng)
    recipe = CompileRecipe(include=include, ignore=ignore)
    report = compile_model(path, masks, recipe).report
    assert [weight.weight for weight in report.weights] == taken
    others = {f"{name}.weight" for name in "cab"} - set(taken)
    assert report.left_alone == dict.fromkeys(others, "no mask names this weight")


def test_ignored_mask_may_fit_nothing(tmp_path: Path, rng: np.random.Generator) -> None:
    path, masks, _ = three_linears(tmp_path, rng)
    stray = band_mask(rng, "stray.weight", random_weight(rng, 8, 8), [True])
    both = masks_of(*masks.weights.values(), stray)
    assert "mask 'stray.weight' | fits no weight" in reason(lambda: plan_model(path, both))
    plan = plan_model(path, both, CompileRecipe(ignore=("stray*",)))
    assert len(plan.plan.weights) == 3


@pytest.mark.parametrize("restore", [False, True])
def test_weight_that_stays_dense_is_masked_unless_it_is_to_be_restored(
    tmp_path: Path, rng: np.random.Generator, restore: bool
) -> None:
    """Dense tiles on the diagonal leave nothing to cut."""
    weight = random_weight(rng, 16, 16)
    mask = random_mask(rng, "fc.weight", weight, "8x8", dense=np.eye(2, dtype=np.bool_))
    path = linear_model([Linear("fc", weight)], tmp_path / "model.onnx")
    compiled = compile_model(path, masks_of(mask), CompileRecipe(restore=restore))
    assert lowerings(compiled.report) == {"fc.weight": "untouched" if restore else "dense"}
    (stored,) = onnx.load(compiled.save(tmp_path / "out")).graph.initializer
    expected = weight if restore else np.where(mask.keep(), weight, np.float32(0))
    np.testing.assert_array_equal(numpy_helper.to_array(stored), expected.T)


def test_single_weight_that_goes_is_masked(tmp_path: Path, rng: np.random.Generator) -> None:
    weight = random_weight(rng, 16, 16)
    keep = np.ones((16, 16), np.bool_)
    keep[3, 5] = False
    grid = Geometry(None, None).grid((16, 16))
    mask = from_keep("fc.weight", grid, np.array([[True]]), keep)
    path = linear_model([Linear("fc", weight)], tmp_path / "model.onnx")
    compiled = compile_model(path, masks_of(mask))
    (stored,) = onnx.load(compiled.save(tmp_path / "out")).graph.initializer
    np.testing.assert_array_equal(
        numpy_helper.to_array(stored), np.where(keep, weight, np.float32(0)).T
    )


def test_bad_pattern_is_one_line(tmp_path: Path, rng: np.random.Generator) -> None:
    path, masks, _ = three_linears(tmp_path, rng)
    recipe = CompileRecipe(ignore=("re:[",))
    text = reason(lambda: plan_model(path, masks, recipe), RecipeError)
    assert text.startswith("pattern 're:[' | is not a regular expression: ")


# What is reported


def test_report_states_the_facts_of_every_weight(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    weights = {name: random_weight(rng, 32, 48) for name in ("cut", "full", "left", "free")}
    path = linear_model([Linear(n, w) for n, w in weights.items()], tmp_path / "model.onnx")
    masks = masks_of(
        band_mask(rng, "cut.weight", weights["cut"]),
        band_mask(rng, "full.weight", weights["full"], [False] * 4),
        band_mask(rng, "left.weight", weights["left"], [True] * 4),
    )
    compiled = compile_model(path, masks)
    report = compiled.report
    (group,) = report.groups
    assert (group.lowering, group.weights) == (
        "merge",
        ("cut.weight", "full.weight", "left.weight"),
    )
    assert [(p.role, p.shape) for p in group.products] == [
        ("dense", (48, 48)),
        ("sparse24", (48, 48)),
    ]
    assert group.reason == "one X: 2 wide products in place of 4"
    assert {weight.group for weight in report.weights} == {"merge"}
    assert lowerings(report) == {
        "cut.weight": "columns",
        "full.weight": "whole",
        "left.weight": "dense",
    }
    assert report.left_alone == {"free.weight": "no mask names this weight"}
    cut, full, left = report.weights
    assert (cut.sparsity, cut.sparse_tile_share, cut.eligible) == (0.25, 0.5, 1)
    assert (cut.macs, cut.macs_kept) == (1536, 1152.0)
    assert [(p.role, p.shape) for p in cut.pieces] == [
        ("dense", (16, 48)),
        ("sparse24", (16, 48)),
    ]
    assert (full.sparsity, full.eligible, full.macs_kept) == (0.5, 1, 768.0)
    assert (left.sparsity, left.eligible, left.reason) == (0.0, 0, "every tile is dense")
    for weight in report.weights:
        assert (weight.shape, weight.geometry, weight.dtype) == ((32, 48), "band:8", "float")
        assert weight.bound_by == "name"
        assert weight.masks == (weight.weight,)
    assert report.totals == {
        "weights": 3,
        "parameters": 4608,
        "sparsity": 0.25,
        "sparse_tile_share": 0.5,
        "macs_kept": 0.75,
        "pieces": 4,
        "products": 2,
        "eligible": 2,
        "chosen": "unknown",
        "lowerings": {"columns": 1, "dense": 1, "whole": 1},
        "groups": {"merge": 1},
    }


def test_reports_on_disk_are_those_in_memory(tmp_path: Path, rng: np.random.Generator) -> None:
    path, masks, _ = three_linears(tmp_path, rng)
    known = Masks(masks.weights, {"method": "wanda"})
    compiled = compile_model(path, known, FREE)
    folder = compiled.save(tmp_path / "out").parent
    assert sorted(contents(folder)) == [
        "compiled.onnx",
        "compiled.onnx.data",
        "plan.json",
        "report.html",
        "report.json",
    ]
    report = json.loads((folder / "report.json").read_text("utf-8"))
    assert report["made_by"] == {"method": "wanda"}
    assert report["inputs"] == {"model": "model.onnx"}
    assert report["recipe"]["min_gain"] == 0.0
    assert report["totals"] == compiled.report.totals
    assert set(report["versions"]) >= {"patch-compile", "onnx", "onnx-ir", "numpy"}
    assert Plan.from_json((folder / "plan.json").read_text("utf-8")) == compiled.plan


def test_plan_is_that_of_the_compiled_model_and_changes_nothing(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    path, masks, _ = three_linears(tmp_path, rng)
    model = load_model(path)
    planned = plan_model(model, masks)
    assert [node.op_type for node in model.graph] == ["MatMul"] * 3
    compiled = compile_model(path, masks)
    assert planned.plan == compiled.plan
    # Digests are compared when the weights are read, and a model in memory has no file name.
    unread = tuple(replace(weight, digest="unknown") for weight in planned.report.weights)
    assert replace(planned.report, weights=unread) == replace(compiled.report, inputs={})
    assert {weight.digest for weight in planned.report.weights} == {"match"}


def test_progress_counts_every_digest(tmp_path: Path, rng: np.random.Generator) -> None:
    path, masks, _ = three_linears(tmp_path, rng)
    seen: list[tuple[int, int, str]] = []
    plan_model(path, masks, progress=lambda *step: seen.append(step))
    assert [step[:2] for step in seen] == [(1, 3), (2, 3), (3, 3)]


# Digests


def test_weight_that_is_not_the_mask_s_own_is_refused(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    path, masks, weights = three_linears(tmp_path, rng)
    changed = weights["a"].copy()
    changed[0, 0] += 1
    linears = [Linear(n, changed if n == "a" else w) for n, w in weights.items()]
    other = linear_model(linears, tmp_path / "other.onnx")
    compiled = compile_model(other, masks)
    assert reason(lambda: compiled.save(tmp_path / "out")) == reason(
        lambda: plan_model(other, masks)
    )
    assert list((tmp_path / "out").iterdir()) == []
    assert reason(lambda: plan_model(other, masks)) == (
        "weight 'a.weight' | differs from the weight its mask was made for, by the "
        "sha256 of its values; give the masks of this checkpoint, or pass --no-check-digests "
        "if the change was meant"
    )
    unchecked = compile_model(other, masks, CompileRecipe(check_digests=False))
    assert digests_said(unchecked.save(tmp_path / "unchecked")) == {"unknown"}
    assert digests_said(compile_model(path, masks).save(tmp_path / "out")) == {"match"}


@pytest.mark.parametrize("form", ["matmul", "gemm_b"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_digest_matches_in_every_type_and_layout_of_an_export(
    tmp_path: Path, rng: np.random.Generator, form: str, dtype: str
) -> None:
    weight = random_weight(rng, 32, 48)
    mask = band_mask(rng, "fc.weight", weight)
    cast = weight.astype(FLOATS[dtype][0])
    path = linear_model([Linear("fc", cast, form)], tmp_path / "m.onnx", lead=(3,))
    (found,) = plan_model(path, masks_of(mask)).report.weights
    assert found.digest == "match"
    cast[5, 6] += 1
    path = linear_model([Linear("fc", cast, form)], tmp_path / "m.onnx", lead=(3,))
    assert "weight 'fc.weight' | differs" in reason(lambda: plan_model(path, masks_of(mask)))


def test_mask_without_a_digest_is_unknown_not_matched(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    weight = random_weight(rng, 16, 32)
    mask = random_mask(rng, "fc.weight", weight, "8x8", with_digests=False)
    path = linear_model([Linear("fc", weight)], tmp_path / "m.onnx")
    (found,) = plan_model(path, masks_of(mask)).report.weights
    assert found.digest == "unknown"


# Mask sources


def test_masks_of_a_file_compile_like_those_in_memory(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    path, masks, _ = three_linears(tmp_path, rng)
    save_masks(masks, tmp_path / "masks.json")
    one = compile_model(path, masks).save(tmp_path / "one").parent
    two = compile_model(path, tmp_path / "masks.json").save(tmp_path / "two").parent
    for name in ("compiled.onnx", "compiled.onnx.data", "plan.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_zeros_of_the_model_itself_serve_as_masks(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    weight = random_weight(rng, 32, 48)
    mask = band_mask(rng, "fc.weight", weight)
    masked = np.where(mask.keep(), weight, np.float32(0))
    path = linear_model([Linear("fc", masked)], tmp_path / "model.onnx")
    recipe = CompileRecipe(tile="band:8")
    compiled = compile_model(path, "infer", recipe)
    assert lowerings(compiled.report) == {"fc.weight": "columns"}
    assert compiled.report.made_by == {"method": "infer", "tile": "band:8"}
    x = rng.standard_normal((2, 3, 48)).astype(np.float32)
    found = run_ort(compiled.save(tmp_path / "out"), {"x": x}, optimise=True)["y_fc"]
    expected = masked_product(x, masked, np.ones_like(masked, np.bool_))
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def test_model_without_zeros_is_left_as_it_is(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    weight = random_weight(rng, 32, 48)
    path = linear_model([Linear("fc", weight)], tmp_path / "model.onnx")
    compiled = compile_model(path, "infer")
    (found,) = compiled.report.weights
    assert (found.lowering, found.reason) == ("untouched", "every tile is dense")
    out = onnx.load(compiled.save(tmp_path / "out"))
    assert out.graph.initializer[0].raw_data == np.ascontiguousarray(weight.T).tobytes()
    assert out.graph.node == onnx.load(path).graph.node


def test_maskllm_file_compiles_with_the_shapes_of_the_model(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    name = "model.layers.0.mlp.up_proj"
    weight = random_weight(rng, 32, 48)
    mask = random_mask(rng, name, weight, "weight", dense=np.array([[False]]))
    packed: dict[str, Any] = {f"{name}.weight.mask": np.packbits(mask.keep().ravel())}
    np.savez_compressed(tmp_path / "mask_compressed.npz", **packed)
    path = linear_model([Linear(name, weight)], tmp_path / "model.onnx")
    compiled = compile_model(path, tmp_path / "mask_compressed.npz")
    assert lowerings(compiled.report) == {f"{name}.weight": "whole"}
    x = rng.standard_normal((2, 3, 48)).astype(np.float32)
    found = run_ort(compiled.save(tmp_path / "out"), {"x": x}, optimise=True)[f"y_{name}"]
    expected = masked_product(x, weight, mask.keep())
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def test_unknown_mask_file_and_model_are_one_line(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    path, masks, _ = three_linears(tmp_path, rng)
    assert "is not a file" in reason(lambda: compile_model(path, tmp_path / "no.json"))
    text = reason(lambda: compile_model(tmp_path / "no.onnx", masks), ModelError)
    assert "is not a file" in text
