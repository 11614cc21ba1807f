"""What engines tell of their layers, in the forms of TensorRT 8 to 11."""

from pathlib import Path

import pytest

from patch_compile.errors import ModelError
from patch_compile.runtimes.layer_info import (
    read_layer_file,
    read_layers,
    read_profile,
    read_times,
)
from tests.runtimes import published


def test_detailed_layers_name_their_nodes_and_kernels() -> None:
    reformat, dense, sparse = read_layers(published.ISSUE_4020)
    assert (reformat.kind, reformat.tactic, reformat.sparse_weights) == ("Reformat", "", None)
    assert dense.nodes == ("resnetv15_stage2_conv1_fwd", "resnetv15_stage2_batchnorm1_fwd")
    assert (dense.sparse, dense.sparse_weights) == (False, False)
    assert (sparse.sparse, sparse.sparse_weights) == (True, True)
    assert sparse.outputs == ("Thirty-two wide channel vectorized row major Int8 format",)


def test_names_alone_still_tell_fusions() -> None:
    layers = read_layers(published.EXPLORER_NAMES)
    assert layers[2].nodes == (
        "neck.detect1.conv1.conv.weight",
        "/neck/detect1/conv1/conv/Conv",
        "/neck/detect1/conv1/relu/LeakyRelu",
    )
    assert (layers[3].opaque, layers[3].nodes) == (True, ())
    assert {layer.tactic for layer in layers} == {""}


def test_eleven_splits_type_from_format() -> None:
    (layer,) = read_layers(published.ELEVEN)
    assert (layer.inputs, layer.outputs) == (("FP16",), ("FP16",))
    assert layer.nodes == ("fc1", "act")


@pytest.mark.parametrize(
    ("name", "nodes"),
    [
        ("/mlp/linear_fc1_14/Gemm_myl5_155", ("/mlp/linear_fc1_14/Gemm",)),
        ("a/patch/sparse24_0 + PWN(b)", ("a/patch/sparse24_0", "b")),
        ("{ForeignNode[a...b]}", ()),
    ],
)
def test_nodes_are_read_off_names_where_there_is_no_metadata(
    name: str, nodes: tuple[str, ...]
) -> None:
    (layer,) = read_layers(f'{{"Layers": [{{"Name": "{name}"}}]}}')
    assert layer.nodes == nodes


def test_a_node_name_may_hold_brackets() -> None:
    metadata = "[ONNX Layer: x[0]/MatMul]\\u001e[ONNX Layer: y]"
    (layer,) = read_layers(f'{{"Layers": [{{"Name": "n", "Metadata": "{metadata}"}}]}}')
    assert layer.nodes == ("x[0]/MatMul", "y")


def test_profile_and_times_are_read() -> None:
    assert read_profile(published.PROFILE) == {"fc1": 0.09, "fc2": 0.07}
    assert read_times(published.TIMES) == [2.5, 2.25]


@pytest.mark.parametrize("text", ["", "[", "[]", '{"Layers": 3}', '"x"'])
def test_damage_is_told_in_one_line(text: str) -> None:
    with pytest.raises(ModelError, match=r"layer info \| .*trtexec again"):
        read_layers(text)


@pytest.mark.parametrize("read", [read_profile, read_times])
def test_other_json_is_refused(read: object) -> None:
    assert callable(read)
    with pytest.raises(ModelError, match="expected a list"):
        read("{}")


def test_a_missing_file_tells_nothing(tmp_path: Path) -> None:
    assert read_layer_file(tmp_path / "none.json") == ()
