"""Every lowering computes the masked product, for any tile map, at both ORT levels."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from patch_compile.compiler import compile_model
from patch_compile.errors import InternalError, MaskError
from patch_compile.io import piece_tensor
from patch_compile.io.onnx_model import load_model
from patch_compile.passes.columns import TilePartitionColumns
from patch_compile.passes.cover import TilePartitionCover
from patch_compile.passes.legal import sparse_pieces_are_24
from patch_compile.passes.lowering import Emitter
from patch_compile.passes.reduction import TilePartitionReduction
from patch_compile.recipe import CompileRecipe
from patch_compile.tiles.geometry import Geometry
from patch_compile.tiles.pattern import codes_of
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

LOWERINGS = ("auto", "dense", "whole", "columns", "reduction", "cover", "residual")
FORMS = ("matmul", "gemm", "gemm_b", "transpose", "constant")

# float32 sums of at most 48 products of numbers below 4 in another order.
TOLERANCE = 1e-4


def check_lowering(
    seed: int,
    n: int,
    k: int,
    geometry: str,
    density: float,
    lowering: str,
    form: str = "matmul",
    bias: bool = False,
    dense: NDArray[np.bool_] | None = None,
) -> str:
    """Compiles one linear and compares it with numpy; returns the lowering it took."""
    rng = np.random.default_rng(seed)
    weight = random_weight(rng, n, k)
    mask = random_mask(rng, "fc.weight", weight, geometry, density, dense=dense)
    added = rng.standard_normal(n).astype(np.float32) if bias else None
    lead = (3,) if form.startswith("gemm") else ("batch", "sequence")
    x = rng.standard_normal((3, k) if len(lead) == 1 else (2, 3, k)).astype(np.float32)
    expected = masked_product(x, weight, mask.keep()) + (0 if added is None else added)
    with tempfile.TemporaryDirectory() as folder:
        path = linear_model(
            [Linear("fc", weight, form, added)], Path(folder) / "model.onnx", lead=lead
        )
        recipe = CompileRecipe(lowering=lowering, min_gain=0.0)  # type: ignore[arg-type]
        compiled = compile_model(path, masks_of(mask), recipe)
        out = compiled.save(Path(folder) / "out")
        for optimise in (False, True):
            found = run_ort(out, {"x": x}, optimise=optimise)["y_fc"]
            np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
        assert sparse_pieces_are_24(load_model(out)) == []
    return compiled.report.weights[0].lowering


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 40),
    k=st.integers(1, 12).map(lambda groups: 4 * groups),
    rows=st.integers(1, 16),
    columns=st.integers(1, 4).map(lambda groups: 4 * groups),
    density=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
    lowering=st.sampled_from(LOWERINGS),
    form=st.sampled_from(FORMS),
    bias=st.booleans(),
)
def test_any_free_tile_map_computes_the_masked_product(
    seed: int,
    n: int,
    k: int,
    rows: int,
    columns: int,
    density: float,
    lowering: str,
    form: str,
    bias: bool,
) -> None:
    check_lowering(seed, n, k, f"{rows}x{columns}", density, lowering, form, bias)


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(2, 40),
    k=st.integers(1, 12).map(lambda groups: 4 * groups),
    geometry=st.sampled_from(
        ["band:1", "band:5", "band:8", "column:4", "column:12", "weight"]
    ),
    lowering=st.sampled_from(LOWERINGS),
)
def test_strip_geometries_compute_the_masked_product(
    seed: int, n: int, k: int, geometry: str, lowering: str
) -> None:
    check_lowering(seed, n, k, geometry, 0.5, lowering)


@given(k=st.integers(1, 30), n=st.integers(1, 20), seed=st.integers(0, 99))
def test_any_number_of_in_features_computes_the_masked_product(
    k: int, n: int, seed: int
) -> None:
    lowering = check_lowering(seed, n, k, "4x8", 0.3, "auto")
    if k % 4:
        assert lowering in ("dense", "untouched")


def _tiles(rows: list[int], columns: list[int]) -> NDArray[np.bool_]:
    """The tile map of a 40 x 48 weight in 8 x 8 tiles with dense bands and strips."""
    dense = np.zeros((5, 6), np.bool_)
    dense[rows] = True
    dense[:, columns] = True
    return dense


# For each lowering a geometry and a tile map that calls for it.
CASES = {
    "dense": ("weight", np.zeros((1, 1), np.bool_)),
    "whole": ("weight", np.zeros((1, 1), np.bool_)),
    "columns": ("band:8", _tiles([1, 3], [])[:, :1]),
    "reduction": ("column:8", _tiles([], [2, 4])[:1]),
    "cover": ("8x8", _tiles([1, 3], [2])),
    "residual": ("column:8", _tiles([], [2, 4])[:1]),
}


def check_case(lowering: str) -> str:
    geometry, dense = CASES[lowering]
    return check_lowering(5, 40, 48, geometry, 0.0, lowering, dense=dense)


@pytest.mark.parametrize("lowering", CASES)
def test_each_lowering_fires(lowering: str) -> None:
    assert check_case(lowering) == lowering


def test_reference_tells_a_wrong_mask_from_the_right_one() -> None:
    """The property above could not fail if the reference ignored the mask."""
    rng = np.random.default_rng(0)
    weight = random_weight(rng, 8, 16)
    a = random_mask(rng, "a", weight, "4x4", 0.5)
    b = random_mask(rng, "b", weight, "4x4", 0.5)
    x = rng.standard_normal((2, 16))
    difference = masked_product(x, weight, a.keep()) - masked_product(x, weight, b.keep())
    assert np.abs(difference).max() > 100 * TOLERANCE


def _columns_forgets_order(self: Any, op: Any, x: ir.Value, y: ir.Value, **_: Any) -> Any:
    emit = self.emit(op, y)
    return emit._call(
        "Concat", [emit.product(x, 0), emit.product(x, 1)], "concat", y.shape, axis=-1
    )


def _reduction_takes_wrong_strips(
    self: Any, op: Any, x: ir.Value, y: ir.Value, **_: Any
) -> Any:
    emit = self.emit(op, y)
    dense, sparse = emit.job.plan.pieces
    first = tuple((0, stop - start) for start, stop in dense.columns[:1])
    wrong = first + dense.columns[1:]
    return emit.add(
        emit.product(emit.take(x, wrong, "x_dense"), 0),
        emit.product(emit.take(x, sparse.columns, "x_sparse24"), 1),
    )


def _cover_drops_a_sum(self: Any, op: Any, x: ir.Value, y: ir.Value, **_: Any) -> Any:
    emit = self.emit(op, y)
    band, _, sparse = emit.job.plan.pieces
    rest = emit.product(emit.take(x, sparse.columns, "x_sparse24"), 2)
    return emit.join([(emit.product(x, 0), band.rows), (rest, sparse.rows)])


def _residual_takes_the_first_twice(codes: Any, part: str) -> Any:
    return codes_of(codes, "first")


def _unmasked(self: Emitter, index: int) -> ir.Value:
    piece = self.job.plan.pieces[index]
    tensor = self.job.weight.bits().view(np.float32)[:, : piece.shape[0]]
    value: ir.Value = self.op.initializer(ir.tensor(np.ascontiguousarray(tensor), name="m"))
    return value


@pytest.mark.parametrize(
    ("lowering", "target", "attribute", "mutant"),
    [
        ("columns", TilePartitionColumns, "rewrite", _columns_forgets_order),
        ("reduction", TilePartitionReduction, "rewrite", _reduction_takes_wrong_strips),
        ("cover", TilePartitionCover, "rewrite", _cover_drops_a_sum),
        ("residual", piece_tensor, "codes_of", _residual_takes_the_first_twice),
        ("whole", Emitter, "_piece", _unmasked),
        ("dense", Emitter, "_piece", _unmasked),
    ],
)
def test_planted_mutant_is_caught(
    monkeypatch: pytest.MonkeyPatch, lowering: str, target: Any, attribute: str, mutant: Any
) -> None:
    check_case(lowering)
    monkeypatch.setattr(target, attribute, mutant)
    with pytest.raises((AssertionError, InternalError)):
        check_case(lowering)


def test_shared_weight_gets_one_set_of_pieces(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    path, weight, mask = _twice(tmp_path, rng)
    compiled = compile_model(path, masks_of(mask), CompileRecipe(lowering="columns"))
    out = compiled.save(tmp_path / "out")
    names = [v.name for v in load_model(out).graph.initializers.values()]
    assert sum(".weight" in (name or "") for name in names) == 2
    x = rng.standard_normal((2, 3, 32)).astype(np.float32)
    expected = masked_product(x, weight, mask.keep())
    found = run_ort(out, {"x": x}, optimise=True)
    for name in ("y_a", "y_b"):
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=TOLERANCE)


def _twice(tmp_path: Path, rng: np.random.Generator) -> tuple[Path, Any, Any]:
    weight = random_weight(rng, 24, 32)
    path = linear_model(
        [Linear("a", weight), Linear("b", random_weight(rng, 24, 32))], tmp_path / "model.onnx"
    )
    model = load_model(path)
    products = [node for node in model.graph if node.op_type == "MatMul"]
    products[1].replace_input_with(1, products[0].inputs[1])
    ir.save(model, path)
    return path, weight, random_mask(rng, "a.weight", weight, "band:8", 0.5)


def test_dense_weight_with_other_consumers_stays(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    path, weight, mask = _twice(tmp_path, rng)
    model = load_model(path)
    shared = next(node for node in model.graph if node.op_type == "MatMul").inputs[1]
    extra = ir.Node("", "Identity", [shared], name="other")
    extra.outputs[0].name = "raw"
    extra.outputs[0].type, extra.outputs[0].shape = shared.type, shared.shape  # type: ignore[union-attr]
    model.graph.append(extra)
    model.graph.outputs.append(extra.outputs[0])
    ir.save(model, path)
    out = compile_model(path, masks_of(mask)).save(tmp_path / "out")
    x = rng.standard_normal((1, 2, 32)).astype(np.float32)
    found = run_ort(out, {"x": x}, optimise=False)
    np.testing.assert_array_equal(found["raw"], weight.T)


def test_restore_gives_dense_pieces_their_unpruned_weights(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    weight = random_weight(rng, 32, 32)
    mask = random_mask(rng, "fc.weight", weight, "8x8", 0.2)
    path = linear_model([Linear("fc", weight)], tmp_path / "model.onnx")
    recipe = CompileRecipe(lowering="cover", restore=True)
    compiled = compile_model(path, masks_of(mask), recipe)
    keep = mask.keep()
    for piece in compiled.plan.weights[0].pieces:
        if piece.role == "dense":
            for row in piece.rows:
                for column in piece.columns:
                    keep[slice(*row), slice(*column)] = True
    x = rng.standard_normal((2, 3, 32)).astype(np.float32)
    found = run_ort(compiled.save(tmp_path / "out"), {"x": x}, optimise=True)["y_fc"]
    np.testing.assert_allclose(found, masked_product(x, weight, keep), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("external", [False, True])
def test_second_compile_gives_identical_bytes(
    tmp_path: Path, rng: np.random.Generator, external: bool
) -> None:
    weight = random_weight(rng, 64, 64)
    mask = random_mask(rng, "fc.weight", weight, "16x16", 0.3)
    path = linear_model([Linear("fc", weight)], tmp_path / "model.onnx", external=external)
    recipe = CompileRecipe(min_gain=0.0)
    one = compile_model(path, masks_of(mask), recipe).save(tmp_path / "one").parent
    two = compile_model(path, masks_of(mask), recipe).save(tmp_path / "two").parent
    for file in sorted(file.name for file in one.iterdir()):
        assert (one / file).read_bytes() == (two / file).read_bytes(), file


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_compiling_a_compiled_model_changes_nothing(
    tmp_path: Path, rng: np.random.Generator, lowering: str
) -> None:
    linears = [Linear(name, random_weight(rng, 48, 32)) for name in ("a", "b")]
    masks = masks_of(
        *(
            random_mask(rng, f"{linear.name}.weight", linear.weight, "8x8", 0.3)
            for linear in linears
        )
    )
    path = linear_model(linears, tmp_path / "model.onnx", external=True)
    recipe = CompileRecipe(lowering=lowering, min_gain=0.0)  # type: ignore[arg-type]
    one = compile_model(path, masks, recipe).save(tmp_path / "one")
    again = compile_model(one, masks, recipe)
    two = again.save(tmp_path / "two")
    assert set(again.report.left_alone.values()) == {"already compiled"}
    for file in ("compiled.onnx", "compiled.onnx.data"):
        assert (one.parent / file).read_bytes() == (two.parent / file).read_bytes()


@pytest.mark.parametrize("lowering", CASES)
def test_printed_graph_is_the_golden_one(tmp_path: Path, golden: Any, lowering: str) -> None:
    rng = np.random.default_rng(5)
    weight = random_weight(rng, 40, 48)
    geometry, dense = CASES[lowering]
    mask = random_mask(rng, "fc.weight", weight, geometry, dense=dense)
    path = linear_model([Linear("fc", weight)], tmp_path / "model.onnx")
    recipe = CompileRecipe(lowering=lowering)  # type: ignore[arg-type]
    out = compile_model(path, masks_of(mask), recipe).save(tmp_path / "out")
    golden.check(f"{lowering}.txt", graph_text(out))


def test_gemm_with_bias_is_the_golden_graph(
    tmp_path: Path, golden: Any, rng: np.random.Generator
) -> None:
    weight, bias = random_weight(rng, 16, 32), np.ones(16, np.float32)
    mask = random_mask(rng, "fc.weight", weight, "weight", 0.0)
    path = linear_model(
        [Linear("fc", weight, "gemm_b", bias)], tmp_path / "model.onnx", lead=(3,)
    )
    out = compile_model(path, masks_of(mask)).save(tmp_path / "out")
    golden.check("gemm.txt", graph_text(out))


def test_unknown_rank_still_computes_the_masked_product(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    weight = random_weight(rng, 40, 32)
    mask = random_mask(rng, "fc.weight", weight, Geometry(8, None).grid((40, 32)), 0.5)
    path = linear_model([Linear("fc", weight)], tmp_path / "model.onnx")
    model = load_model(path)
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.shape = None
    ir.save(model, path)
    out = compile_model(path, masks_of(mask), CompileRecipe(lowering="columns")).save(tmp_path)
    x = rng.standard_normal((2, 32)).astype(np.float32)
    found = run_ort(out, {"x": x}, optimise=False)["y_fc"]
    np.testing.assert_allclose(
        found, masked_product(x, weight, mask.keep()), rtol=0, atol=TOLERANCE
    )


def test_compiled_model_refuses_other_masks(tmp_path: Path, rng: np.random.Generator) -> None:
    weight = random_weight(rng, 48, 32)
    path = linear_model([Linear("fc", weight)], tmp_path / "model.onnx")
    first, second = (
        masks_of(random_mask(rng, "fc.weight", weight, "weight", 0.0)) for _ in range(2)
    )
    one = compile_model(path, first).save(tmp_path / "one")
    with pytest.raises(MaskError, match="compiled before, with other masks"):
        compile_model(one, second)
