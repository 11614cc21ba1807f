"""Options of ONNX Runtime's providers follow the graph, the tokens and what was asked."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from patch_compile.errors import ModelError, RuntimeUnavailable
from patch_compile.recipe import BenchRuntime
from patch_compile.runtimes.providers import (
    PROVIDERS,
    Declared,
    DeclaredInput,
    EngineWishes,
    check_assigned,
    providers,
)
from patch_compile.runtimes.timing import TIMERS
from tests.support import Linear, linear_model, random_weight, said

LANGUAGE_MODEL = Declared(
    (
        DeclaredInput("input_ids", ("batch", "sequence"), "tensor(int64)"),
        DeclaredInput("attention_mask", ("batch", "sequence"), "tensor(int64)"),
        DeclaredInput("scale", (1, 4), "tensor(float)"),
    ),
    frozenset({"FLOAT16", "INT64"}),
)


def _options(runtime: BenchRuntime, wishes: EngineWishes) -> dict[str, str]:
    return dict(providers(runtime, wishes)[0].options)


def test_every_runtime_has_a_timer_and_those_of_onnx_runtime_a_provider() -> None:
    every = set(get_args(BenchRuntime))
    assert set(PROVIDERS) == {name for name in every if name.startswith("ort-")}
    assert every == set(TIMERS)


def test_what_one_provider_leaves_goes_to_the_next() -> None:
    wishes = EngineWishes(LANGUAGE_MODEL)
    found = {name: [p.name for p in providers(name, wishes)] for name in PROVIDERS}
    cpu, cuda = "CPUExecutionProvider", "CUDAExecutionProvider"
    assert found == {
        "ort-cpu": [cpu],
        "ort-cuda": [cuda, cpu],
        "ort-tensorrt": ["TensorrtExecutionProvider", cuda, cpu],
        "ort-rtx": ["NvTensorRTRTXExecutionProvider", cpu],
    }


def test_engines_are_tuned_for_the_most_tokens() -> None:
    wishes = EngineWishes(LANGUAGE_MODEL, batch=2, tokens=(1, 128))
    options = _options("ort-tensorrt", wishes)
    assert options["trt_profile_min_shapes"] == "input_ids:2x1,attention_mask:2x1"
    most = "input_ids:2x128,attention_mask:2x128"
    assert options["trt_profile_opt_shapes"] == options["trt_profile_max_shapes"] == most
    assert _options("ort-rtx", wishes)["nv_profile_max_shapes"] == most


def test_a_model_of_fixed_shapes_has_no_profile() -> None:
    fixed = Declared((DeclaredInput("x", (1, 4), "tensor(float)"),), frozenset())
    options = _options("ort-tensorrt", EngineWishes(fixed)) | _options(
        "ort-rtx", EngineWishes(fixed)
    )
    assert [name for name in options if "profile" in name] == []


@pytest.mark.parametrize(
    ("kinds", "allowed"),
    [
        ({"FLOAT"}, "000"),
        ({"FLOAT", "FLOAT16"}, "100"),
        ({"BFLOAT16"}, "010"),
        ({"INT8", "FLOAT16"}, "101"),
    ],
)
def test_a_precision_is_allowed_only_where_the_graph_has_it(
    kinds: set[str], allowed: str
) -> None:
    options = _options("ort-tensorrt", EngineWishes(Declared((), frozenset(kinds))))
    names = ("trt_fp16_enable", "trt_bf16_enable", "trt_int8_enable")
    assert "".join(options[name] for name in names) == allowed


@pytest.mark.parametrize("sparse", [True, False])
def test_sparse_kernels_are_allowed_on_request(sparse: bool) -> None:
    options = _options("ort-tensorrt", EngineWishes(LANGUAGE_MODEL, sparse=sparse))
    assert options["trt_sparsity_enable"] == str(int(sparse))


def test_a_cache_keeps_engines_and_timings(tmp_path: Path) -> None:
    wishes = EngineWishes(LANGUAGE_MODEL, cache=tmp_path)
    options = _options("ort-tensorrt", wishes)
    assert {name: value for name, value in options.items() if "cache" in name} == {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(tmp_path),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(tmp_path),
    }
    assert _options("ort-rtx", wishes)["nv_runtime_cache_path"] == str(tmp_path)
    assert not [
        n for n in _options("ort-tensorrt", EngineWishes(LANGUAGE_MODEL)) if "cache" in n
    ]


def test_a_context_holds_its_engines(tmp_path: Path) -> None:
    wishes = EngineWishes(LANGUAGE_MODEL, context=tmp_path / "c.onnx")
    options = _options("ort-tensorrt", wishes)
    assert {name: value for name, value in options.items() if "context" in name} == {
        "trt_dump_ep_context_model": "1",
        "trt_ep_context_file_path": str(tmp_path / "c.onnx"),
        "trt_ep_context_embed_mode": "1",
    }


def test_the_graph_alone_tells_inputs_types_and_files(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    weight = random_weight(rng, 6, 8, "float16")
    path = linear_model([Linear("a", weight)], tmp_path / "m.onnx", external=True)
    # Not needed to read the graph.
    Path(f"{path}.data").unlink()
    found = Declared.of(path)
    (x,) = found.inputs
    assert (x.name, list(x.shape), x.type) == (
        "x",
        ["batch", "sequence", 8],
        "tensor(float16)",
    )
    assert found.weight_types == {"FLOAT16"}
    assert found.data_files == {"m.onnx.data"}


def test_an_initializer_that_is_an_input_too_is_no_input(tmp_path: Path) -> None:
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in ("x", "w")]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        values,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
        [numpy_helper.from_array(np.ones(2, np.float32), "w")],
    )
    onnx.save(helper.make_model(graph), tmp_path / "m.onnx")
    assert [value.name for value in Declared.of(tmp_path / "m.onnx").inputs] == ["x"]


@pytest.mark.parametrize("content", [None, b"\x01garbage"])
def test_no_model_is_told_in_one_line(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "m.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=r"m\.onnx' \| cannot be read") as caught:
        Declared.of(path)
    said(caught)


class _Assigned:
    """A session whose nodes went to the provider named."""

    def __init__(self, name: str) -> None:
        self.name = name

    def get_provider_graph_assignment_info(self) -> list[Any]:
        return [SimpleNamespace(ep_name=self.name, get_nodes=lambda: [1, 2, 3])]


def test_a_provider_that_took_no_node_is_not_called_used() -> None:
    left: Any = _Assigned("CPUExecutionProvider")
    with pytest.raises(RuntimeUnavailable, match=r"took none of 3 nodes.*CPUExec") as caught:
        check_assigned(left, "ort-cuda")
    said(caught)
    assert check_assigned(left, "ort-cpu") == {"CPUExecutionProvider": 3}


def test_what_a_release_cannot_tell_is_unknown() -> None:
    old: Any = SimpleNamespace()
    assert check_assigned(old, "ort-cuda") is None
