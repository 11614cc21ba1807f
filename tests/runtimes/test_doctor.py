"""The doctor tries things: what it calls working has just worked."""

import importlib.util
from pathlib import Path

import onnx
import pytest

from patch_compile.runtimes import doctor
from patch_compile.runtimes.doctor import Check, diagnose
from patch_compile.runtimes.gpu import Gpu, find_gpus
from tests.runtimes.standin import stand_in

NO_GPU = pytest.mark.skipif(bool(find_gpus()), reason="there is a GPU")
SOME = Gpu("NVIDIA A100", 80, "550.54", 81920)


@pytest.fixture(scope="module")
def here() -> dict[str, Check]:
    return {check.name: check for check in diagnose().checks}


def test_what_does_not_work_says_how_to_mend_it(here: dict[str, Check]) -> None:
    assert {c.name for c in here.values() if c.state != "works" and not c.mend} == set()
    assert {c.name for c in here.values() if c.state == "works" and c.mend} == set()
    assert all(c.found and c.serves and "\n" not in c.found for c in here.values())


def test_the_cpu_provider_ran_a_product(here: dict[str, Check]) -> None:
    assert here["ONNX Runtime CPUExecutionProvider"].found == "loads and runs a product"


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed"
)
def test_rtx_built_a_product(here: dict[str, Check]) -> None:
    assert here["TensorRT-RTX"].state == "works"
    assert here["TensorRT-RTX"].found.endswith("builds a product")


@NO_GPU
def test_a_machine_without_a_gpu_is_told_what_it_can_do(here: dict[str, Check]) -> None:
    assert here["GPU and driver"].state == "missing"
    assert "--bundle" in here["GPU and driver"].mend
    assert here["CUDA of the driver"].state == "missing"


def test_the_product_is_a_valid_model_with_a_sparse_weight(tmp_path: Path) -> None:
    path = doctor._product(tmp_path / "p.onnx")
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    weight = onnx.numpy_helper.to_array(proto.graph.initializer[0])
    groups = (weight.reshape(-1, 4, weight.shape[1]) != 0).sum(axis=1)
    assert (groups == 2).all()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("print('one'); print('two  words')", (True, "two words")),
        ("import missing_module_of_ours", (False, "No module named 'missing_module_of_ours'")),
        ("import os; os.kill(os.getpid(), 11)", (False, "ended with -11")),
    ],
)
def test_a_crash_is_an_answer(code: str, said: tuple[bool, str]) -> None:
    works, text = doctor._ask(code)
    assert works is said[0]
    assert said[1] in text


def test_a_hang_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_SECONDS", 0.3)
    assert doctor._ask("import time; time.sleep(30)") == (False, "no answer in 0.3 s")


def test_an_old_gpu_has_no_sparse_tensor_cores() -> None:
    assert doctor._gpu([SOME]).state == "works"
    found = doctor._gpu([Gpu("NVIDIA T4", 75, "550.54", 15360)])
    assert (found.state, "Ampere" in found.mend) == ("broken", True)


def test_a_gpu_without_its_provider_is_told(tmp_path: Path) -> None:
    model = doctor._product(tmp_path / "p.onnx")
    names = {check.name: check for check in doctor._providers(model, [SOME])}
    cuda = names["ONNX Runtime CUDAExecutionProvider"]
    assert cuda.state != "works" or find_gpus()
    assert cuda.state == "works" or cuda.mend


def test_trtexec_is_asked_for_its_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRTEXEC", str(stand_in(tmp_path)))
    assert doctor._trtexec().found == f"10.5.0 in {tmp_path / 'trtexec'}"
    monkeypatch.setenv("TRTEXEC", str(tmp_path / "none"))
    assert doctor._trtexec().state == "broken"
    monkeypatch.setattr(doctor, "find_trtexec", lambda: None)
    missing = doctor._trtexec()
    assert (missing.state, "libnvinfer-bin" in missing.mend) == ("missing", True)
