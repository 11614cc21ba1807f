"""TensorRT-RTX really builds these engines; none of them is ever called sparse."""

import importlib.util
import json
import sys
import time
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from patch_compile.errors import ModelError, RecipeError, RuntimeUnavailable
from patch_compile.recipe import BuildRecipe
from patch_compile.runtimes import _native, _process, _worker, tensorrt_rtx
from patch_compile.runtimes._job import Job
from patch_compile.runtimes.engines import EngineResult, build_engine
from patch_compile.runtimes.gpu import find_gpus

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed"
)

SIZE = 256
RECIPE = BuildRecipe(engine="tensorrt_rtx", sm=(86,), batch=(1, 4, 16), timeout=120.0)


def _weight() -> onnx.TensorProto:
    weight = np.random.default_rng(0).standard_normal((SIZE, SIZE)).astype(np.float16)
    weight.reshape(SIZE // 4, 4, SIZE)[:, :2] = 0
    return numpy_helper.from_array(weight, "w")


def _save(
    path: Path, nodes: list[onnx.NodeProto], tensors: list[onnx.TensorProto]
) -> onnx.ModelProto:
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT16, ["batch", SIZE])
        for name in "xy"
    )
    graph = helper.make_graph(nodes, "graph", [x], [y], tensors)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("my.ops", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.save(model, path)
    return model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A product of float16 x (batch, 256) with a 2:4 weight."""
    path = tmp_path / "m.onnx"
    _save(path, [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")], [_weight()])
    return path


def _build(model: Path, recipe: BuildRecipe = RECIPE) -> EngineResult:
    return build_engine(model, model.with_suffix(".engine"), recipe)


def _refused(
    error: type[Exception], match: str, model: Path, recipe: BuildRecipe = RECIPE
) -> str:
    """Returns the message of a build that fails and leaves nothing but the log."""
    engine = model.parent / "out" / "m.engine"
    with pytest.raises(error, match=match) as caught:
        build_engine(model, engine, recipe)
    assert {file.name for file in engine.parent.glob("*")} <= {"m.engine.log"}
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_engine_holds_the_weight_and_its_facts_lie_beside(model: Path) -> None:
    result = _build(model)
    assert result.bytes == result.path.stat().st_size > SIZE * SIZE * 2
    assert result.sm == (86,)
    assert (result.requested_sparse, result.chosen) == (True, "unknown")
    assert result.model_sha256 == sha256(model.read_bytes()).hexdigest()
    assert 0 < result.seconds < RECIPE.timeout
    facts = json.loads((model.parent / "m.engine.json").read_text())
    assert facts["version"] == result.version
    assert facts["sm"] == [86]
    assert "SPARSE_WEIGHTS" in facts["flags"]
    assert facts["profiles"] == {"x": [[1, SIZE], [4, SIZE], [16, SIZE]]}
    assert facts["model_sha256"] == result.model_sha256
    assert facts["sparsity"] == {
        "requested": True,
        "found": "unknown",
        "chosen": "unknown",
    }


def test_engine_s_memory_on_the_gpu_is_what_the_builder_tells(model: Path) -> None:
    found = _build(model).evidence.memory
    # The weight in halves, which an engine may pad; the product needs some scratch.
    assert found.weights is not None
    assert SIZE * SIZE * 2 <= found.weights <= SIZE * SIZE * 4
    assert found.activations is not None
    assert found.activations > 0
    assert found.total == found.weights + found.activations + (found.persistent or 0)
    facts = json.loads(_side_file(model))["gpu_memory"]
    assert (facts["total"], facts["weights"]) == (found.total, found.weights)


def test_log_that_cannot_be_written_is_told(model: Path) -> None:
    (model.parent / "m.engine.log").mkdir()
    with pytest.raises(ModelError, match=r"log '.*m\.engine\.log' \| cannot be written"):
        _build(model)


def test_log_has_the_words_of_the_builder(model: Path) -> None:
    log = _build(model).log
    assert log == model.parent / "m.engine.log"
    assert "product [MatMul]" in log.read_text()


def test_two_builds_write_the_same_bytes(model: Path) -> None:
    first, facts = _build(model).path.read_bytes(), _side_file(model)
    assert _build(model).path.read_bytes() == first
    assert _side_file(model) == facts


def _side_file(model: Path) -> str:
    return model.with_suffix(".engine.json").read_text()


def test_architecture_and_ranges_reach_the_engine(model: Path) -> None:
    engines = {
        _build(model, recipe).path.read_bytes()
        for recipe in (RECIPE, replace(RECIPE, sm=(89,)), replace(RECIPE, batch=(1, 8, 32)))
    }
    assert len(engines) == 3


def test_every_option_that_rtx_has_reaches_the_builder(model: Path) -> None:
    asked = replace(RECIPE, strict_nans=True, optimization_level=1, workspace=64)
    _build(model, asked)
    flags = json.loads(_side_file(model))["flags"]
    assert {"SPARSE_WEIGHTS", "STRICT_NANS", "STRONGLY_TYPED"} <= set(flags)
    assert "REFIT" not in flags


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"precision": ("fp16",)}, r"precision \| asks for fp16; TensorRT-RTX .*--dtype"),
        ({"hardware": "ampere-plus"}, r"hardware \| is 'ampere-plus'; TensorRT-RTX builds"),
        ({"flags": ("--fp16",)}, r"flags \| are for trtexec, as in --fp16"),
    ],
)
def test_what_rtx_lacks_is_refused(model: Path, changes: dict[str, Any], words: str) -> None:
    _refused(RecipeError, words, model, replace(RECIPE, **changes))


def test_a_refit_that_needs_a_gpu_fails_in_one_line(model: Path) -> None:
    if find_gpus():
        pytest.skip("there is a GPU: it may be built")
    _refused(
        ModelError,
        r"for SM86: .*; leave --refit or sparse",
        model,
        replace(RECIPE, refit=True),
    )


@pytest.mark.parametrize("sm", [75, 80, 86, 89, 120, 121])
def test_every_architecture_of_rtx_builds_the_same_twice(model: Path, sm: int) -> None:
    recipe = replace(RECIPE, sm=(sm,))
    first = _build(model, recipe).path.read_bytes()
    assert _build(model, recipe).path.read_bytes() == first


def test_no_architecture_is_named_for_its_default(model: Path) -> None:
    assert _build(model, replace(RECIPE, sm=())).sm == tensorrt_rtx.DEFAULT_SM


def test_symbols_of_the_profile_are_kept(model: Path) -> None:
    assert dict(_build(model).evidence.symbols) == {"batch": 4}


@pytest.mark.filterwarnings("ignore:.*TensorRT-RTX 1.2.*:DeprecationWarning")
def test_kept_timings_are_taken_and_others_started_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On real objects; RTX times nothing, so that what is kept is empty."""
    trt = importlib.import_module("tensorrt_rtx")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    config = builder.create_builder_config()
    job = Job("tensorrt_rtx", "m", "e", timing_cache=str(tmp_path / "timing.cache"))
    cache = _worker._open_cache(config, job)
    _worker._keep(Path(job.timing_cache), memoryview(cache.serialize()))
    assert _worker._open_cache(config, job) is not None
    assert capsys.readouterr().err == ""
    assert [file.name for file in tmp_path.iterdir()] == ["timing.cache"]
    assert _worker._open_cache(config, replace(job, timing_cache="")) is None


def test_what_is_asked_of_an_engine_exists() -> None:
    """The calls that need a GPU, which no test here can make."""
    trt = importlib.import_module("tensorrt_rtx")
    assert callable(trt.Runtime.deserialize_cuda_engine)
    assert callable(trt.ICudaEngine.create_engine_inspector)
    assert callable(trt.EngineInspector.get_engine_information)
    assert trt.LayerInformationFormat.JSON is not None
    assert set(_worker._HARDWARE.values()) <= set(trt.HardwareCompatibilityLevel.__members__)


def test_several_architectures_and_no_sparsity(model: Path) -> None:
    result = _build(model, replace(RECIPE, sm=(80, 86), sparse=False))
    assert (result.sm, result.requested_sparse) == ((80, 86), False)
    facts = json.loads(_side_file(model))
    assert facts["sm"] == [80, 86]
    assert "SPARSE_WEIGHTS" not in facts["flags"]
    assert facts["sparsity"] == {
        "requested": False,
        "found": "unknown",
        "chosen": "unknown",
    }


def test_external_weights_are_found(tmp_path: Path, model: Path) -> None:
    inside = _build(model).path.read_bytes()
    (tmp_path / "apart").mkdir()
    path = tmp_path / "apart" / "m.onnx"
    onnx.save(
        onnx.load(model), path, save_as_external_data=True, location="w.bin", size_threshold=0
    )
    assert _build(path).path.read_bytes() == inside
    (tmp_path / "apart" / "w.bin").unlink()
    _refused(ModelError, r"Failed to open file: .*w\.bin", path)


def test_progress_reaches_the_end(model: Path) -> None:
    calls: list[tuple[int, int, str]] = []
    build_engine(
        model, model.with_suffix(".engine"), RECIPE, lambda *state: calls.append(state)
    )
    done, total, what = calls[-1]
    assert done == total > 0
    assert what == "Building engine"


def test_unknown_architecture_lists_the_known(model: Path) -> None:
    recipe = replace(RECIPE, sm=(86, 90))
    _refused(RecipeError, r"sm \| is 90; .* 75, 80, 86, 89, 120", model, recipe)


def test_missing_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"none\.onnx' \| is not a file"):
        _build(tmp_path / "none.onnx")


def test_damaged_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"\x01garbage")
    _refused(ModelError, r"Failed to parse the ONNX model", tmp_path / "m.onnx")


def test_unknown_operator_names_its_node(tmp_path: Path) -> None:
    node = helper.make_node("Frobnicate", ["x"], ["y"], name="strange", domain="my.ops")
    _save(tmp_path / "m.onnx", [node], [])
    _refused(
        ModelError, r"node 'strange' \(Frobnicate\): .*Plugin not found", tmp_path / "m.onnx"
    )


def test_unsupported_operator_names_its_node(tmp_path: Path) -> None:
    node = helper.make_node("Compress", ["x", "keep"], ["y"], name="squeeze")
    keep = numpy_helper.from_array(np.ones(3, np.bool_), "keep")
    _save(tmp_path / "m.onnx", [node], [keep])
    _refused(ModelError, r"node 'squeeze' \(Compress\): unsupported", tmp_path / "m.onnx")


def test_sparse_initializer_is_refused(tmp_path: Path) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    proto = _save(tmp_path / "m.onnx", [node], [])
    values = helper.make_tensor("w", TensorProto.FLOAT16, [2], np.ones(2, np.float16))
    places = helper.make_tensor("places", TensorProto.INT64, [2], [0, 5])
    sparse = helper.make_sparse_tensor(values, places, [SIZE, SIZE])
    proto.graph.sparse_initializer.append(sparse)
    onnx.save(proto, tmp_path / "m.onnx")
    _refused(ModelError, r"node 'product' .*dense weights", tmp_path / "m.onnx")


def test_mixed_types_come_without_the_noise_of_a_missing_gpu(tmp_path: Path) -> None:
    weight = numpy_helper.to_array(_weight()).astype(np.float32)
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    _save(tmp_path / "m.onnx", [node], [numpy_helper.from_array(weight, "w")])
    message = _refused(ModelError, r"must have same input types", tmp_path / "m.onnx")
    assert "CUDA driver" not in message


def test_fp8_needs_a_newer_gpu_and_the_log_says_so(tmp_path: Path) -> None:
    scale = numpy_helper.from_array(np.array(0.1, np.float16), "scale")
    zero = helper.make_tensor("zero", TensorProto.FLOAT8E4M3FN, [], [0])
    nodes = []
    for name in "xw":
        quantised = [f"{name}_q", "scale", "zero"]
        nodes.append(
            helper.make_node("QuantizeLinear", [name, *quantised[1:]], [quantised[0]])
        )
        nodes.append(helper.make_node("DequantizeLinear", quantised, [f"{name}_d"]))
    nodes.append(helper.make_node("MatMul", ["x_d", "w_d"], ["y"], name="product"))
    path = tmp_path / "m.onnx"
    _save(path, nodes, [_weight(), scale, zero])
    _refused(ModelError, r"for SM86: .*HW-specific datatypes: fp8_e4m3", path)
    assert _build(path, replace(RECIPE, sm=(89,))).bytes > 0


def test_impossible_ranges_are_refused(tmp_path: Path) -> None:
    target = numpy_helper.from_array(np.array([-1, 7], np.int64), "target")
    node = helper.make_node("Reshape", ["x", "target"], ["y"], name="reshape")
    _save(tmp_path / "m.onnx", [node], [target])
    _refused(ModelError, r"for SM86: .*\breshape", tmp_path / "m.onnx")


def test_build_that_takes_too_long_is_stopped(model: Path) -> None:
    started = time.monotonic()
    _refused(
        RuntimeUnavailable, r"did not finish in 0\.01 s", model, replace(RECIPE, timeout=0.01)
    )
    assert time.monotonic() - started < 5


def _replace_worker(model: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    modules = model.parent / "modules"
    modules.mkdir()
    head = "import json, os, signal, sys\nfolder = sys.argv[1]\n"
    (modules / "other_worker.py").write_text(f"{head}{body}\n")
    monkeypatch.setattr(sys, "path", [str(modules), *sys.path])
    monkeypatch.setattr(_native, "_WORKER", "other_worker")


@pytest.mark.parametrize(
    ("end", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", r"was ended by SIGSEGV; last words: nearly"),
        ("os.kill(os.getpid(), signal.SIGKILL)", r"SIGKILL, often for lack of memory"),
        ("raise ImportError('libmissing.so')", r"exit code 1; .*ImportError: libmissing\.so"),
    ],
)
def test_crash_becomes_an_error_with_the_last_words(
    model: Path, monkeypatch: pytest.MonkeyPatch, end: str, words: str
) -> None:
    part = "open(json.load(open(f'{folder}/job.json'))['engine'], 'w').write('half')"
    last = "print('nearly', file=sys.stderr, flush=True)"
    _replace_worker(model, monkeypatch, f"{part}\n{last}\n{end}")
    _refused(RuntimeUnavailable, words, model)


def test_progress_of_a_short_build_is_shown(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _replace_worker(
        model, monkeypatch, "open(f'{folder}/progress', 'w').write('2\\t6\\tx\\n')"
    )
    monkeypatch.setattr(_process, "_POLL", 60.0)
    calls: list[tuple[int, int, str]] = []
    with pytest.raises(RuntimeUnavailable):
        build_engine(
            model, model.with_suffix(".engine"), RECIPE, lambda *state: calls.append(state)
        )
    assert calls == [(2, 6, "x")]


def test_failed_build_leaves_the_old_engine(model: Path) -> None:
    before = _build(model).path.read_bytes()
    with pytest.raises(RecipeError):
        _build(model, replace(RECIPE, sm=(1,)))
    assert model.with_suffix(".engine").read_bytes() == before


def test_missing_package_names_the_pip_command(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeUnavailable, match=r"pip install 'tensorrt-rtx>=[0-9.]+'$"):
        _build(model)


def test_working_folder_hides_no_module(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (model.parent / "json.py").write_text("raise SystemExit(9)\n")
    monkeypatch.chdir(model.parent)
    assert _build(Path("m.onnx")).path == Path("m.engine")
