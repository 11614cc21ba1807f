import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from patch_compile.errors import MaskError, ModelError, PatchCompileError, RecipeError
from patch_compile.learn.export import WEIGHT, export_onnx
from patch_compile.learn.linears import prunable
from patch_compile.learn.model import LoadedModel
from patch_compile.recipe import ExportRecipe, LearnRecipe
from patch_compile.tiles.masks import Masks
from tests.learn.tiny import one_shot, random_ids, tiny_model

WORDS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
MAGNITUDE = LearnRecipe(method="magnitude", select="error", tile="48x40", sparsity=(0.3,))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedModel, Path]:
    model = tiny_model("llama")
    path = tmp_path_factory.mktemp("first") / "model.onnx"
    return model, export_onnx(model, path, ExportRecipe())


def _run(path: Path, ids: Any) -> Any:
    session = onnxruntime.InferenceSession(path)
    return session.run(["logits"], {"input_ids": ids.numpy()})[0]


def _labelled(graph: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {
        entry.value: node
        for node in graph.graph.node
        for entry in node.metadata_props
        if entry.key == WEIGHT
    }


def _weights(graph: onnx.ModelProto) -> dict[str, tuple[onnx.TensorProto, bool]]:
    """The tensor each labelled node multiplies by, and whether it is stored (K, N)."""
    tensors = {tensor.name: tensor for tensor in graph.graph.initializer}
    found = {}
    for name, node in _labelled(graph).items():
        kept = any(a.name == "transB" and a.i == 1 for a in node.attribute)
        if node.input[1] in tensors:
            found[name] = (tensors[node.input[1]], not kept)
    return found


def _assert_same_logits(model: LoadedModel, path: Path, atol: float) -> None:
    for shape in ((2, 8), (3, 5), (1, 1), (1, 40)):
        ids = random_ids(shape, seed=shape[1])
        with torch.no_grad():
            expected = model.module(input_ids=ids).logits
        np.testing.assert_allclose(
            _run(path, ids).astype(np.float32), expected.float().numpy(), rtol=0, atol=atol
        )


def test_llama_gives_the_logits_of_torch_for_any_batch_and_length(
    exported: tuple[LoadedModel, Path],
) -> None:
    # The bound of the task; 4e-7 was seen.
    _assert_same_logits(*exported, atol=1e-4)


@pytest.mark.parametrize("kind", ["qwen2", "gemma", "opt"])
def test_other_architectures_give_the_logits_of_torch(kind: str, tmp_path: Path) -> None:
    model = tiny_model(kind, layers=1)
    path = export_onnx(model, tmp_path / "model.onnx", ExportRecipe())
    _assert_same_logits(model, path, atol=1e-4)
    _assert_weights_are_bound(model, path)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_floats_are_kept_from_weights_to_logits(dtype: str, tmp_path: Path) -> None:
    model = tiny_model(layers=1, dtype=dtype)
    recipe = ExportRecipe(dtype=WORDS[dtype])  # type: ignore[arg-type] # from the table
    path = export_onnx(model, tmp_path / "model.onnx", recipe)
    _assert_weights_are_bound(model, path)
    logits = onnx.load(path, load_external_data=False).graph.output[0]
    expected = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(getattr(ml_dtypes, dtype, dtype)))
    assert logits.type.tensor_type.elem_type == expected
    if dtype == "float16":
        # Logits near 1 in steps of 2^-10, a few steps off.
        _assert_same_logits(model, path, atol=4e-3)


def _assert_weights_are_bound(model: LoadedModel, path: Path) -> None:
    """Every prunable weight is found under its name, with its values."""
    found = _weights(onnx.load(path))
    linears = prunable(model.module)
    assert found.keys() >= linears.keys()
    for name, linear in linears.items():
        tensor, turned = found[name]
        values = numpy_helper.to_array(tensor).astype(np.float32)
        assert np.array_equal(values.T if turned else values, linear.array()), name


def test_every_weight_is_bound_by_name(exported: tuple[LoadedModel, Path]) -> None:
    _assert_weights_are_bound(*exported)


def test_signature_is_ids_to_logits_with_named_axes(
    exported: tuple[LoadedModel, Path],
) -> None:
    graph = onnx.load(exported[1], load_external_data=False)
    onnx.checker.check_model(str(exported[1]), full_check=True)
    axes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*graph.graph.input, *graph.graph.output)
    }
    assert axes == {
        "input_ids": ["batch", "sequence"],
        "logits": ["batch", "sequence", 128],
    }
    assert [(o.domain, o.version) for o in graph.opset_import] == [("", 20)]


def test_second_export_has_the_same_bytes_and_is_silent(
    exported: tuple[LoadedModel, Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, first = exported
    with caplog.at_level(logging.INFO):
        second = export_onnx(model, tmp_path / "model.onnx", ExportRecipe())
    assert capfd.readouterr() == ("", "")
    assert {record.name.partition(".")[0] for record in caplog.records} == {"patch_compile"}
    names = sorted(path.name for path in first.parent.iterdir())
    assert names == sorted(path.name for path in second.parent.iterdir())
    # Transformers 4 writes one more.
    assert [name for name in names if name != "special_tokens_map.json"] == [
        "config.json",
        "model.onnx",
        "model.onnx.data",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    for name in names:
        assert (first.parent / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_files_name_no_path_of_this_machine(exported: tuple[LoadedModel, Path]) -> None:
    places = (Path(torch.__file__).parents[1], Path.home(), Path(__file__).parents[2])
    for file in exported[1].parent.iterdir():
        content = file.read_bytes()
        assert not [place for place in places if str(place).encode() in content], file.name
        assert b"stack_trace" not in content
        assert b'File "' not in content


def test_configuration_beside_the_model_is_the_models(
    exported: tuple[LoadedModel, Path],
) -> None:
    model, path = exported
    config = json.loads((path.parent / "config.json").read_text("utf-8"))
    assert config["rope_theta"] == config.get("rope_parameters", config)["rope_theta"]
    assert config["use_cache"] is True
    assert model.module.config.use_cache is True


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_masked_graph_equals_the_masked_model(kind: str, tmp_path: Path) -> None:
    model = tiny_model(kind, layers=1)
    masks = one_shot(model, None, MAGNITUDE)
    seen: list[tuple[int, int, str]] = []
    path = export_onnx(
        model,
        tmp_path / "model.onnx",
        ExportRecipe(),
        masks,
        progress=lambda *step: seen.append(step),
    )
    assert seen[:2] == [(0, 2, "tracing the model"), (1, 2, "simplifying the graph")]
    assert seen[-1] == (2, 2, "wrote model.onnx")
    _assert_weights_are_bound(model, path)
    _assert_same_logits(model, path, atol=1e-4)
    _mask_graph(path, masks)
    ids = random_ids((2, 12))
    with torch.no_grad():
        dense = model.module(input_ids=ids).logits.numpy()
        for name, linear in prunable(model.module).items():
            keep = torch.from_numpy(masks.weights[name].keep())
            linear.matrix(linear.weight).mul_(keep)
        masked = model.module(input_ids=ids).logits.numpy()
    np.testing.assert_allclose(_run(path, ids), masked, rtol=0, atol=1e-4)
    assert np.abs(dense - masked).max() > 1e-2


def _mask_graph(path: Path, masks: Masks) -> None:
    graph = onnx.load(path)
    for name, (tensor, turned) in _weights(graph).items():
        if name in masks.weights:
            keep = masks.weights[name].keep()
            values = numpy_helper.to_array(tensor) * (keep.T if turned else keep)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(graph, path)


def _renamed(masks: Masks) -> Masks:
    mask = next(iter(masks.weights.values()))
    object.__setattr__(mask, "name", "model.other.weight")
    return Masks({mask.name: mask})


def _of_wider_model(masks: Masks) -> Masks:
    name, wide = "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight"
    mask = masks.weights[wide]
    object.__setattr__(mask, "name", name)
    return Masks({name: mask})


def _of_other_values(masks: Masks) -> Masks:
    mask = next(iter(masks.weights.values()))
    object.__setattr__(mask, "digests", {"float32": "0" * 64})
    return Masks({mask.name: mask})


@pytest.mark.parametrize(
    ("misfit", "message"),
    [
        (_renamed, "names no linear of model 'tiny-llama'"),
        (_of_wider_model, r"has shape \(64, 172\) \(N, K\), its weight \(172, 64\)"),
        (_of_other_values, "was made for other values than this float32 weight has"),
    ],
)
def test_misfit_of_masks_shows_before_the_export(
    misfit: Callable[[Masks], Masks],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the export ran")

    monkeypatch.setattr(torch.onnx, "export", refuse)
    model = tiny_model(layers=1)
    masks = misfit(one_shot(model, None, MAGNITUDE))
    with pytest.raises(MaskError, match=message) as caught:
        export_onnx(model, tmp_path / "model.onnx", ExportRecipe(), masks)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_masks_of_the_fp32_model_fit_it_in_every_type(
    kind: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = one_shot(tiny_model(kind, layers=1), None, MAGNITUDE)
    model = tiny_model(kind, layers=1, dtype=dtype)

    def stop(*_: Any, **__: Any) -> None:
        raise StopIteration

    monkeypatch.setattr(torch.onnx, "export", stop)
    recipe = ExportRecipe(dtype=WORDS[dtype])  # type: ignore[arg-type] # from the table
    with pytest.raises(StopIteration):
        export_onnx(model, tmp_path / "model.onnx", recipe, masks)


@pytest.mark.parametrize(
    ("output", "recipe", "message"),
    [
        ("model.pt", ExportRecipe(), r"expected one ending in \.onnx"),
        ("model.onnx", ExportRecipe(opset=17), "opset | is 17; expected 18 to 24"),
        ("model.onnx", ExportRecipe(opset=99), "opset | is 99; expected 18 to 24"),
        ("model.onnx", ExportRecipe(dtype="bf16"), "is bf16 for a model loaded as float32"),
    ],
)
def test_recipe_that_does_not_fit_is_refused(
    output: str, recipe: ExportRecipe, message: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=message.replace("|", r"\|")):
        export_onnx(tiny_model(layers=1), tmp_path / output, recipe)


def test_model_that_torch_cannot_trace_is_one_line_and_leaves_no_file(
    tmp_path: Path,
) -> None:
    model = tiny_model(layers=1)
    module: Any = model.module
    act = module.model.layers[0].mlp.act_fn
    module.model.layers[0].mlp.act_fn = _DataDependent(act)
    with pytest.raises(PatchCompileError, match="cannot be exported by torch") as caught:
        export_onnx(model, tmp_path / "out" / "model.onnx", ExportRecipe())
    assert isinstance(caught.value, ModelError)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


class _DataDependent(torch.nn.Module):
    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Any) -> Any:
        return self.inner(x) if x.sum().item() > 0 else x


def test_linear_that_is_not_in_the_graph_is_an_error(tmp_path: Path) -> None:
    model = tiny_model(layers=0)
    module: Any = model.module
    module.model.extra = torch.nn.Linear(8, 8)
    with pytest.raises(ModelError, match=r"for 1 linears of the model: \['model.extra.weight"):
        export_onnx(model, tmp_path / "model.onnx", ExportRecipe())
    assert list(tmp_path.iterdir()) == []
