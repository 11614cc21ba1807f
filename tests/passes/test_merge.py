"""Products of one X and role become one wide product, split afterwards."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patch_compile.compiler import Compiled, compile_model
from patch_compile.errors import InternalError
from patch_compile.io.onnx_model import load_model
from patch_compile.passes import lowering as lowering_module
from patch_compile.passes.legal import sparse_pieces_are_24
from patch_compile.passes.merge import MergeMatMuls
from patch_compile.recipe import CompileRecipe
from patch_compile.tiles.masks import Masks
from tests.support import (
    Linear,
    graph_text,
    linear_model,
    masked_product,
    masks_of,
    random_mask,
    random_weight,
    run_ort,
)

# float32 sums of at most 32 products of numbers below 4 in another order.
TOLERANCE = 1e-4

Made = tuple[list[Linear], Masks]


def linears_of(
    rng: np.random.Generator, heights: list[int], tiles: list[str], form: str = "matmul"
) -> Made:
    """Linears of one X (..., 32), each with a mask in its own geometry."""
    linears = [
        Linear(f"n{i}", random_weight(rng, height, 32), form)
        for i, height in enumerate(heights)
    ]
    masks = [
        random_mask(rng, f"{linear.name}.weight", linear.weight, tile, 0.4)
        for linear, tile in zip(linears, tiles, strict=True)
    ]
    return linears, masks_of(*masks)


def check_merge(
    made: Made, folder: Path, lowering: str = "merge", opset: int = 20
) -> tuple[Compiled, Path]:
    linears, masks = made
    two = linears[0].form.startswith("gemm")
    lead = (3,) if two else ("batch", "sequence")
    path = linear_model(linears, folder / "model.onnx", lead=lead, opset=opset, external=True)
    x = np.random.default_rng(3).standard_normal((3, 32) if two else (2, 3, 32))
    x = x.astype(np.float32)
    recipe = CompileRecipe(lowering=lowering, min_gain=0.0)  # type: ignore[arg-type]
    compiled = compile_model(path, masks, recipe)
    out = compiled.save(folder / "out")
    for optimise in (False, True):
        found = run_ort(out, {"x": x}, optimise=optimise)
        assert list(found) == [f"y_{linear.name}" for linear in linears]
        for linear in linears:
            keep = masks.weights[f"{linear.name}.weight"].keep()
            expected = masked_product(x, linear.weight, keep)
            np.testing.assert_allclose(
                found[f"y_{linear.name}"], expected, rtol=0, atol=TOLERANCE
            )
    assert sparse_pieces_are_24(load_model(out)) == []
    again = compile_model(out, masks, recipe)
    assert {weight.lowering for weight in again.report.weights} <= {"untouched"}
    assert again.save(folder / "two").read_bytes() == out.read_bytes()
    return compiled, out


def kinds(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


tiles = st.sampled_from(["weight", "band:4", "band:5", "band:16", "column:8", "8x8"])


@given(
    seed=st.integers(0, 2**32 - 1),
    members=st.lists(st.tuples(st.integers(1, 30), tiles), min_size=2, max_size=4),
    form=st.sampled_from(["matmul", "gemm_b", "transpose", "constant"]),
    lowering=st.sampled_from(["merge", "auto"]),
)
def test_any_merge_computes_the_masked_products(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    members: list[tuple[int, str]],
    form: str,
    lowering: str,
) -> None:
    heights, geometries = [height for height, _ in members], [tile for _, tile in members]
    made = linears_of(np.random.default_rng(seed), heights, geometries, form)
    compiled, out = check_merge(made, tmp_path_factory.mktemp("merge"), lowering)
    totals: Any = compiled.report.totals
    untouched = totals["lowerings"].get("untouched", 0)
    assert kinds(out)["MatMul"] + kinds(out)["Gemm"] == totals["products"]
    assert kinds(out)["Gemm"] <= untouched


def banded(*dense: list[bool]) -> Made:
    """Linears of 8 rows a band, dense or 2:4 as given."""
    rng = np.random.default_rng(5)
    linears = [
        Linear(name, random_weight(rng, 8 * len(rows), 32))
        for name, rows in zip("qkv", dense, strict=False)
    ]
    masks = [
        random_mask(
            rng,
            f"{linear.name}.weight",
            linear.weight,
            "band:8",
            dense=np.array(rows)[:, None],
        )
        for linear, rows in zip(linears, dense, strict=False)
    ]
    return linears, masks_of(*masks)


def test_whole_weights_of_one_role_become_one_product(tmp_path: Path) -> None:
    compiled, out = check_merge(banded([False] * 3, [False], [False] * 2), tmp_path)
    assert kinds(out) == {"MatMul": 1, "Split": 1}
    (group,) = compiled.report.groups
    assert group.reason == "one X: 1 wide products in place of 3"
    assert [(p.role, p.shape) for p in group.products] == [("sparse24", (48, 32))]


def test_weights_of_two_roles_need_no_concat(tmp_path: Path) -> None:
    _, out = check_merge(banded([False] * 2, [True], [False]), tmp_path)
    # k is dense and alone in that: it is left as it was.
    assert kinds(out) == {"MatMul": 2, "Split": 1}


def test_cut_weights_share_one_gather(tmp_path: Path) -> None:
    made = banded([True, False, True], [False, True], [True, False])
    _, out = check_merge(made, tmp_path)
    merged = kinds(out)
    _, out = check_merge(made, tmp_path, "columns")
    apart = kinds(out)
    assert merged == {"MatMul": 2, "Concat": 1, "Reshape": 2, "Gather": 1, "Split": 1}
    assert apart["MatMul"] == 6
    assert sum(merged.values()) < sum(apart.values())


def test_one_cut_weight_is_joined_alone(tmp_path: Path) -> None:
    _, out = check_merge(banded([True, False, True], [True], [False, False]), tmp_path)
    assert kinds(out) == {"MatMul": 2, "Split": 2, "Concat": 1, "Reshape": 2, "Gather": 1}


def test_wholly_dense_siblings_are_left_alone(tmp_path: Path) -> None:
    compiled, out = check_merge(banded([True], [True]), tmp_path)
    assert compiled.plan.groups == ()
    assert kinds(out) == {"MatMul": 2}


def test_split_sizes_are_an_attribute_before_opset_13(tmp_path: Path) -> None:
    _, out = check_merge(banded([False], [False]), tmp_path, opset=12)
    (split,) = [node for node in onnx.load(out).graph.node if node.op_type == "Split"]
    assert {a.name for a in split.attribute} == {"axis", "split"}


def test_merged_columns_are_those_of_apart_bit_for_bit(tmp_path: Path) -> None:
    """On kernels that sum every column alike, as ONNX Runtime's do for these shapes."""
    made = banded([True, False, True, False], [False, True], [True, False])
    (tmp_path / "one").mkdir()
    _, merged = check_merge(made, tmp_path / "one")
    (tmp_path / "two").mkdir()
    _, apart = check_merge(made, tmp_path / "two", "columns")
    x = np.random.default_rng(1).standard_normal((1, 4, 32)).astype(np.float32)
    one, two = (run_ort(path, {"x": x}, optimise=False) for path in (merged, apart))
    for name, value in one.items():
        np.testing.assert_array_equal(value, two[name])


def test_forced_columns_are_not_merged(tmp_path: Path) -> None:
    compiled, _ = check_merge(banded([True, False], [False, True]), tmp_path, "columns")
    assert compiled.plan.groups == ()


def test_printed_graph_is_the_golden_one(tmp_path: Path, golden: Any) -> None:
    _, out = check_merge(banded([True, False, True], [False, True], [False]), tmp_path)
    golden.check("merge.txt", graph_text(out))


def _swaps_outputs(self: Any, members: Any, x: Any) -> None:
    made = self._apart(members, x)
    for emit, value in zip(reversed(members), made, strict=True):
        self.jobs.outputs[emit.job.plan.weight] = value


def _stacks_backwards(pieces: Any, name: str) -> Any:
    return StackedTensor(list(reversed(pieces)), name)


StackedTensor = lowering_module.StackedTensor


@pytest.mark.parametrize(
    ("target", "attribute", "mutant"),
    [
        (MergeMatMuls, "_make", _swaps_outputs),
        (lowering_module, "StackedTensor", _stacks_backwards),
    ],
)
def test_planted_mutant_is_caught(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, target: Any, attribute: str, mutant: Any
) -> None:
    made = banded([True, False], [False, True], [True, False])
    check_merge(made, tmp_path)
    monkeypatch.setattr(target, attribute, mutant)
    with pytest.raises((AssertionError, InternalError)):
        check_merge(made, tmp_path)
