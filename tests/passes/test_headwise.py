"""What single operations of an attention become in a branch, against the masked original."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from patch_compile.compiler import compile_model
from patch_compile.passes.attention import Attention, Whole, find_attention
from patch_compile.recipe import CompileRecipe
from patch_compile.tiles.masks import Masks
from tests.passes.heads import Heads, tied_heads
from tests.support import OLD_ONNXRUNTIME, run_ort

# float32 sums of at most some tens of products of numbers below 8, three in a row, in another
# order; scores go through an exponential, outputs reach some tens.
RTOL, ATOL = 1e-4, 2e-3

Edit = Callable[[onnx.GraphProto], None]


def masked(path: Path, masks: Masks) -> Path:
    """The same model with the masked weights set to zero; weights are stored (K, N)."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name in masks.weights:
            keep = masks.weights[tensor.name].keep().T
            kept: NDArray[np.float32] = np.where(keep, numpy_helper.to_array(tensor), 0)
            tensor.CopyFrom(numpy_helper.from_array(kept.astype(np.float32), tensor.name))
    copy = path.with_name("masked.onnx")
    onnx.save(model, copy)
    return copy


def check_branches(folder: Path, heads: Heads, edit: Edit) -> onnx.ModelProto:
    """Cuts an edited attention, which must be possible, and compares with the original."""
    rng = np.random.default_rng(5)
    arrays = heads.arrays(rng)
    path = heads.save(folder / "model.onnx", arrays)
    model = onnx.load(path)
    edit(model.graph)
    del model.graph.value_info[:]
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    masks = tied_heads(rng, heads, arrays, np.array([False, True, False]))
    compiled = compile_model(path, masks, CompileRecipe(lowering="branches", min_gain=0.0))
    reasons = [weight.reason for weight in compiled.report.weights]
    assert {weight.lowering for weight in compiled.plan.weights} == {"branches"}, reasons
    out = compiled.save(folder / "out")
    given = heads.inputs(rng)
    expected = run_ort(masked(path, masks), given, optimise=True)["y"]
    for optimise in (False, True):
        found = run_ort(out, given, optimise=optimise)["y"]
        np.testing.assert_allclose(found, expected, rtol=RTOL, atol=ATOL)
    return onnx.load(out)


def normalise(value: str, kind: str, *shapes: tuple[int, ...]) -> Edit:
    """Puts a norm with parameters of these shapes between a value and its reader."""

    def edit(graph: onnx.GraphProto) -> None:
        rng = np.random.default_rng(6)
        names = [f"parameter_{place}" for place in range(len(shapes))]
        for name, shape in zip(names, shapes, strict=True):
            array = rng.standard_normal(shape).astype(np.float32)
            graph.initializer.append(numpy_helper.from_array(array, name))
        reader = next(each for each in graph.node if value in each.input)
        reader.input[list(reader.input).index(value)] = "normed"
        made = helper.make_node(kind, [value, *names], ["normed"], name="norm", axis=-1)
        graph.node.insert(list(graph.node).index(reader), made)

    return edit


@pytest.mark.skipif(OLD_ONNXRUNTIME, reason="its norms take parameters of the last axis alone")
@pytest.mark.parametrize(
    ("heads", "edit"),
    [
        (Heads(), normalise("q_view", "LayerNormalization", (6, 4), (6, 4))),
        (Heads(), normalise("q_heads", "LayerNormalization", (6, 1, 4), (6, 1, 4))),
        (Heads(), normalise("k_heads", "LayerNormalization", (3, 1, 4), (4,))),
        (Heads(), normalise("q_heads", "LayerNormalization", (4,), (1, 6, 1, 4))),
        (Heads(form="op"), normalise("q_view", "RMSNormalization", (6, 4))),
    ],
    ids=["before turned", "turned", "keys", "bias", "rms"],
)
def test_parameters_of_a_norm_are_cut_between_heads(
    tmp_path: Path, heads: Heads, edit: Edit
) -> None:
    model = check_branches(tmp_path, heads, edit)
    norms = [node for node in model.graph.node if node.op_type.endswith("Normalization")]
    assert len(norms) == 2


@pytest.mark.parametrize("kind", ["Softmax", "LogSoftmax"])
def test_softmax_that_names_no_axis_is_along_the_last(tmp_path: Path, kind: str) -> None:
    def edit(graph: onnx.GraphProto) -> None:
        softmax = next(node for node in graph.node if node.op_type == "Softmax")
        softmax.op_type = kind
        del softmax.attribute[:]

    model = check_branches(tmp_path, Heads(), edit)
    assert sum(node.op_type == kind for node in model.graph.node) == 2


@pytest.mark.parametrize(("opset", "cut"), [(12, False), (13, True)])
def test_softmax_of_old_opsets_is_along_all_axes_but_the_first(
    tmp_path: Path, opset: int, cut: bool
) -> None:
    heads = Heads(share=1)
    path = heads.save(tmp_path / "model.onnx", heads.arrays(np.random.default_rng(0)))
    model = ir.load(path)
    model.opset_imports[""] = opset
    softmax = next(node for node in model.graph if node.op_type == "Softmax")
    softmax.attributes.clear()
    last = [node for node in model.graph if node.op_type == "MatMul"][-1]
    attention = find_attention(last)
    assert isinstance(attention, Attention) == cut
    if isinstance(attention, Whole):
        assert attention.reason == "Softmax 'weights' normalises across heads"
