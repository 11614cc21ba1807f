"""Sessions run what they are asked on the provider asked for, or say in one line why not."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from patch_compile.errors import ModelError, RuntimeUnavailable
from patch_compile.runtimes.onnxruntime import open_session, run_session
from tests.support import Linear, linear_model, random_weight

# float32 sums of 8 products of numbers below 4; float16 keeps 11 bits.
TOLERANCE = {"float32": 1e-5, "float16": 2e-2}


def _linear(rng: np.random.Generator, path: Path, dtype: str = "float32") -> Any:
    weight = random_weight(rng, 6, 8, dtype)
    linear_model([Linear("a", weight)], path, lead=("batch",), external=True)
    return weight


@pytest.mark.parametrize("optimise", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_session_computes_the_product(
    tmp_path: Path, rng: np.random.Generator, dtype: str, optimise: bool
) -> None:
    weight = _linear(rng, tmp_path / "m.onnx", dtype)
    x = rng.standard_normal((3, 8)).astype(dtype)
    session = open_session(tmp_path / "m.onnx", optimise=optimise)
    got = run_session(session, {"x": x})
    assert list(got) == ["y_a"]
    assert got["y_a"].dtype == dtype
    expected = x.astype(np.float64) @ weight.T.astype(np.float64)
    np.testing.assert_allclose(got["y_a"], expected, atol=TOLERANCE[dtype], rtol=0)


def test_bfloat16_product_names_the_way_out(tmp_path: Path, rng: np.random.Generator) -> None:
    _linear(rng, tmp_path / "m.onnx", "bfloat16")
    with pytest.raises(ModelError, match=r"kernel.*bfloat16.*fp32 or fp16") as caught:
        open_session(tmp_path / "m.onnx")
    assert "\n" not in str(caught.value)
    assert "[ONNXRuntimeError]" not in str(caught.value)


@pytest.mark.parametrize("content", [None, b"", b"\x01garbage"])
def test_no_model_is_refused_in_one_line(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "m.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=r"m\.onnx' \| ") as caught:
        open_session(path)
    assert "\n" not in str(caught.value)


def test_missing_data_file_is_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    _linear(rng, tmp_path / "m.onnx")
    (tmp_path / "m.onnx.data").unlink()
    with pytest.raises(ModelError, match=r"m\.onnx\.data"):
        open_session(tmp_path / "m.onnx")


def test_wrong_feeds_are_refused_in_one_line(tmp_path: Path, rng: np.random.Generator) -> None:
    _linear(rng, tmp_path / "m.onnx")
    session = open_session(tmp_path / "m.onnx")
    for feeds in ({"x": np.zeros((1, 7), np.float32)}, {"x": np.zeros((1, 8))}, {}):
        with pytest.raises(ModelError, match=r"model a \| cannot run") as caught:
            run_session(session, feeds, "model a")
        assert "\n" not in str(caught.value)


def test_unlisted_provider_is_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    _linear(rng, tmp_path / "m.onnx")
    with pytest.raises(RuntimeUnavailable, match=r"has no NoSuchProvider.*CPUExecution"):
        open_session(tmp_path / "m.onnx", providers=("NoSuchProvider",))


def test_fallback_to_the_cpu_is_refused(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Fallen:
        def __init__(self, *arguments: Any, **options: Any) -> None:
            pass

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    _linear(rng, tmp_path / "m.onnx")
    # What onnxruntime-gpu does without a driver: it lists CUDA and opens on the CPU.
    monkeypatch.setattr(onnxruntime, "InferenceSession", Fallen)
    listed = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    with pytest.raises(RuntimeUnavailable, match=r"could not load CUDA.*fell back to CPU"):
        open_session(tmp_path / "m.onnx", providers=("CUDAExecutionProvider",))


def test_missing_package_names_the_pip_command(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    _linear(rng, tmp_path / "m.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(RuntimeUnavailable, match=r"pip install 'onnxruntime>=[0-9.]+' "):
        open_session(tmp_path / "m.onnx")
