"""What 2:4 structure a model has already, against plain numpy."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from patch_compile.compiler import compile_model
from patch_compile.errors import ModelError, RecipeError
from patch_compile.inspection import inspect_model
from patch_compile.io.onnx_model import load_model
from patch_compile.recipe import CompileRecipe
from tests.support import (
    FLOATS,
    Linear,
    linear_model,
    masks_of,
    random_mask,
    random_weight,
    said,
)

FORMS = ("matmul", "gemm", "gemm_b", "transpose", "constant")


def masked(
    rng: np.random.Generator, dense: list[list[bool]], dtype: str = "float32"
) -> NDArray[np.generic]:
    """A weight (16, 24) whose tiles of 8 x 8 are dense or 2:4 as given."""
    weight = random_weight(rng, 16, 24, dtype)
    mask = random_mask(rng, "w", weight, "8x8", dense=np.array(dense))
    return np.where(mask.keep(), weight, np.zeros((), weight.dtype))


TILES = [[True, False, False], [False, False, True]]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("form", FORMS)
def test_tile_map_and_zeros_are_those_of_the_weight(
    tmp_path: Path, rng: np.random.Generator, dtype: str, form: str
) -> None:
    path = linear_model(
        [Linear("a", masked(rng, TILES, dtype), form)], tmp_path / "m.onnx", lead=(3,)
    )
    (found,) = inspect_model(path, "8x8").weights
    assert (found.weight, found.parameter) == ("a.weight", "a.weight")
    assert found.shape == (16, 24)
    assert found.dtype == {"float32": "float"}.get(dtype, dtype)
    # Four of six tiles lose half of their weights.
    assert found.zeros == 4 / 6 / 2
    assert found.sparse_tiles.tolist() == (~np.array(TILES)).tolist()
    assert not found.eligible


def test_whole_weight_of_24_groups_is_eligible(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    weight = masked(rng, [[False] * 3] * 2)
    path = linear_model(
        [Linear("a", weight), Linear("b", random_weight(rng, 16, 24))], tmp_path / "m.onnx"
    )
    one, two = inspect_model(path).weights
    assert (one.eligible, one.zeros) == (True, 0.5)
    assert (two.eligible, two.zeros) == (False, 0.0)


def test_one_group_of_three_makes_a_weight_ineligible(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    weight = masked(rng, [[False] * 3] * 2)
    weight[15, 20:23] = 1
    path = linear_model([Linear("a", weight)], tmp_path / "m.onnx")
    (found,) = inspect_model(path, "8x8").weights
    assert not found.eligible
    assert found.sparse_tiles.tolist() == [[True, True, True], [True, True, False]]


def test_in_features_that_no_kernel_takes_are_never_eligible(tmp_path: Path) -> None:
    path = linear_model([Linear("a", np.zeros((8, 18), np.float32))], tmp_path / "m.onnx")
    (found,) = inspect_model(path).weights
    assert found.sparse_tiles.all()
    assert found.zeros == 1.0
    assert not found.eligible


def test_ragged_tiles_are_inspected(tmp_path: Path, rng: np.random.Generator) -> None:
    weight = random_weight(rng, 9, 14)
    weight[8] = 0
    weight[:, 12:] = 0
    path = linear_model([Linear("a", weight)], tmp_path / "m.onnx")
    (found,) = inspect_model(path, "4x4").weights
    assert found.sparse_tiles.tolist() == [
        [False, False, False, True],
        [False, False, False, True],
        [True, True, True, True],
    ]


def test_negative_zeros_are_zeros_and_nan_is_none(tmp_path: Path) -> None:
    weight = np.full((4, 8), -0.0, np.float32)
    weight[0, :3] = np.nan
    path = linear_model([Linear("a", weight)], tmp_path / "m.onnx")
    (found,) = inspect_model(path, "2x4").weights
    assert found.zeros == 29 / 32
    assert found.sparse_tiles.tolist() == [[False, True], [True, True]]


def test_pieces_of_a_compiled_model_are_inspected(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    weight = random_weight(rng, 16, 24)
    dense = np.array([[True], [False]])
    mask = random_mask(rng, "a.weight", weight, "band:8", dense=dense)
    path = linear_model([Linear("a", weight)], tmp_path / "m.onnx")
    recipe = CompileRecipe(lowering="columns")
    out = compile_model(path, masks_of(mask), recipe).save(tmp_path / "out")
    one, two = inspect_model(out).weights
    assert [(w.shape, w.eligible) for w in (one, two)] == [((8, 24), False), ((8, 24), True)]
    assert one.parameter == "a.weight"


def test_weights_that_cannot_be_inspected_are_named_with_the_reason(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    path = linear_model(
        [Linear("a", random_weight(rng, 4, 8)), Linear("b", random_weight(rng, 4, 8))],
        tmp_path / "m.onnx",
    )
    model = load_model(path)
    model.graph.inputs.append(model.graph.initializers["b.weight"])
    found = inspect_model(model)
    assert [weight.weight for weight in found.weights] == ["a.weight"]
    reason = "a graph input may replace this weight; take it off the graph's inputs"
    assert found.left_alone == {"b.weight": reason}


def test_progress_reaches_every_weight(tmp_path: Path, rng: np.random.Generator) -> None:
    linears = [Linear(name, random_weight(rng, 4, 8)) for name in "abc"]
    seen: list[tuple[int, int, str]] = []
    path = linear_model(linears, tmp_path / "m.onnx")
    inspect_model(path, progress=lambda *step: seen.append(step))
    assert seen == [(1, 3, "inspecting"), (2, 3, "inspecting"), (3, 3, "inspecting")]


def test_json_shows_the_tile_map(tmp_path: Path, rng: np.random.Generator) -> None:
    path = linear_model([Linear("a", masked(rng, TILES))], tmp_path / "m.onnx")
    (found,) = inspect_model(str(path), "8x8").weights
    data = json.loads(json.dumps(found.to_json()))
    assert data["tile_map"] == [".##", "##."]
    assert data["sparse_tile_share"] == 4 / 6
    assert data["shape"] == [16, 24]
    assert data["eligible"] is False


def test_model_without_weights_has_nothing_to_show(tmp_path: Path) -> None:
    path = linear_model([Linear("a", np.ones((4, 8), np.float32))], tmp_path / "m.onnx")
    model = onnx.load(path)
    del model.graph.initializer[:]
    weight = onnx.helper.make_tensor_value_info("a.weight", onnx.TensorProto.FLOAT, [8, 4])
    model.graph.input.append(weight)
    onnx.save(model, path)
    found = inspect_model(path)
    assert found.weights == ()
    assert found.left_alone == {}


def test_bad_path_and_bad_tile_say_so(tmp_path: Path, rng: np.random.Generator) -> None:
    with pytest.raises(ModelError) as missing:
        inspect_model(tmp_path / "absent.onnx")
    assert "is not a file" in said(missing)
    path = linear_model([Linear("a", random_weight(rng, 4, 8))], tmp_path / "m.onnx")
    with pytest.raises(RecipeError) as bad:
        inspect_model(path, "8x6")
    assert "tile width along K | is 6" in said(bad)
