"""What-if compares targets and tokens, with masks or from shapes alone."""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from patch_compile.cli.main import run
from patch_compile.cli.tables import what_if_notes
from patch_compile.compiler import plan_model
from patch_compile.errors import ModelError, RecipeError
from patch_compile.recipe import CompileRecipe
from patch_compile.targets.target import LAUNCH_GAP_US, load
from patch_compile.tiles.geometry import Geometry
from patch_compile.tiles.masks import Masks
from patch_compile.tiles.weight_mask import from_keep
from patch_compile.whatif import named_targets, what_if
from tests.support import Linear, linear_model, masks_of, random_mask, random_weight

N, K = 2048, 1024


@pytest.fixture
def model(tmp_path: Path) -> Path:
    weight = numpy_helper.from_array(np.ones((K, N), np.float16), "w")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["tokens", K])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT16, ["tokens", N])
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="m")], "g", [x], [y], [weight]
    )
    opset = [helper.make_opsetid("", 18)]
    onnx.save(
        helper.make_model(graph, opset_imports=opset, ir_version=10), tmp_path / "m.onnx"
    )
    return tmp_path / "m.onnx"


def masks(*, dense: bool) -> Masks:
    keep = np.ones((N, K), np.bool_)
    if not dense:
        keep[:, ::2] = False
    grid = Geometry(None, None).grid((N, K))
    return Masks({"w": from_keep("w", grid, np.array([[dense]]), keep)})


def test_without_masks_each_weight_is_24_where_that_is_faster(model: Path) -> None:
    recipe = CompileRecipe(tokens=("16", "8192"))
    few, many = what_if(model, None, ["h100-bf16"], recipe)
    target = load("h100", "bf16")
    for row in (few, many):
        both = [
            LAUNCH_GAP_US + target.gemm_us(row.tokens, N, K, sparse24=sparse)
            for sparse in (False, True)
        ]
        assert (row.dense_us, row.everywhere_us) == pytest.approx(both)
        assert row.planned_us == min(row.dense_us, row.everywhere_us)
    assert few.speedup == 1.0
    assert many.speedup > 1.1


def test_masks_decide_what_can_be_faster(model: Path) -> None:
    recipe = CompileRecipe(tokens=("8192",))
    (none,) = what_if(model, masks(dense=True), ["a100-bf16"], recipe)
    (every,) = what_if(model, masks(dense=False), ["a100-bf16"], recipe)
    assert none.speedup == 1.0
    assert every.planned_us == every.everywhere_us < every.dense_us


def test_names_are_spelled_out_once() -> None:
    assert named_targets(["a100-fp16", "a100"]) == ["a100-fp16", "a100-bf16", "a100-int8"]
    every = named_targets(["all"])
    assert len(every) == len(set(every)) > 50
    assert named_targets(["all", "a100"]) == every


def test_two_tables_of_one_file_name_are_told_apart_or_refused() -> None:
    assert named_targets(["a/gpu.json", "b/other.json"]) == ["a/gpu.json", "b/other.json"]
    with pytest.raises(
        RecipeError, match=r"'a/gpu.json' and 'b/gpu.json' are files of one name"
    ):
        named_targets(["a/gpu.json", "b/gpu.json"])


def test_an_unknown_target_is_told(model: Path) -> None:
    with pytest.raises(RecipeError, match=r"target GPU 'v100' \| is unknown"):
        what_if(model, None, named_targets(["v100-fp16"]))


def test_a_model_without_products_is_told(model: Path) -> None:
    graph = onnx.load(model)
    graph.graph.node[0].op_type = "Add"
    del graph.graph.initializer[:]
    graph.graph.node[0].input[1] = "x"
    onnx.save(graph, model)
    with pytest.raises(ModelError, match="has no MatMul or Gemm"):
        what_if(model, None, ["a100-bf16"])


def test_command_prints_a_table_and_writes_every_number(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = model.with_name("what.json")
    command = ["plan", str(model), "--targets", "a100-bf16,l4-fp8", "--tokens", "16,2048"]
    assert run([*command, "-o", str(path)]) == 0
    said = capsys.readouterr().out
    assert "a100-bf16" in said
    assert "l4-fp8*" in said
    assert "* nothing was measured on this GPU" in said
    assert "16†" in said
    assert "2,048†" not in said
    rows = json.loads(path.read_text("utf-8"))["rows"]
    assert [(row["target"], row["tokens"]) for row in rows] == [
        ("a100-bf16", 16),
        ("a100-bf16", 2048),
        ("l4-fp8", 16),
        ("l4-fp8", 2048),
    ]
    assert [row["estimate"] for row in rows] == [False, False, True, True]
    assert [row["extrapolated"] for row in rows] == [True, False, True, False]
    assert rows[1]["lowerings"] == {"whole": 1}
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    drawn = path.with_suffix(".svg").read_text("utf-8")
    assert run([*command, "-o", str(path)]) == 0
    assert path.with_suffix(".svg").read_text("utf-8") == drawn


def test_a_plan_is_priced_with_its_merged_products(tmp_path: Path) -> None:
    """gate and up of one X become one wide 2:4 product: what-if promises what is compiled."""
    rng = np.random.default_rng(0)
    linears = [Linear(n, random_weight(rng, 512, 1024, "float16")) for n in ("a", "b", "c")]
    path = linear_model(linears, tmp_path / "model.onnx")
    sparse = np.array([[False]])
    made = masks_of(
        *(
            random_mask(rng, f"{x.name}.weight", x.weight, "weight", dense=sparse)
            for x in linears
        )
    )
    recipe = CompileRecipe(target="a100-bf16", tokens=("4096",))
    (row,) = what_if(path, made, ["a100-bf16"], recipe)
    planned = plan_model(path, made, recipe)
    (time,) = planned.report.predicted
    assert planned.report.totals["products"] == row.products == 1
    assert (row.dense_us, row.planned_us) == pytest.approx(
        (time["before_us"], time["after_us"])
    )
    (shapes,) = what_if(path, None, ["a100-bf16"], recipe)
    assert shapes.planned_us == pytest.approx(row.planned_us)
    assert row.planned_us < row.everywhere_us
    target = load("a100", "bf16")
    wide = LAUNCH_GAP_US + target.gemm_us(4096, 3 * 512, 1024)
    assert row.merged_us == pytest.approx(wide)
    assert row.speedup_over_merged < row.speedup
    (note,) = what_if_notes([row])
    assert note.startswith("dense: one product a weight; if the engine merges")


def test_without_matplotlib_the_numbers_are_written_all_the_same(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    path = model.with_name("plan.json")
    assert run(["plan", str(model), "--targets", "a100-bf16", "-o", str(path)]) == 0
    assert "no picture: " in capsys.readouterr().err
    assert json.loads(path.read_text("utf-8"))["version"] == 1
    assert not path.with_suffix(".png").exists()


def test_a_plan_without_masks_or_targets_is_told(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["plan", str(model)]) == 1
    assert "tiles | are missing" in capsys.readouterr().err
