"""Calibration: what is measured, how it goes on where it stopped, and a plan that takes it."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from patch_compile.calibration import calibrate, gemm_sizes
from patch_compile.cli.main import run
from patch_compile.errors import ModelError, RecipeError, RuntimeUnavailable
from patch_compile.recipe import CalibrateRecipe, CompileRecipe
from patch_compile.runtimes import trtexec
from patch_compile.runtimes.evidence import Evidence, Performance, Spread
from patch_compile.runtimes.gemm import Timed, gemm_model, time_gemm, timed
from patch_compile.runtimes.gpu import Gpu, find_gpus
from patch_compile.targets.datasheets import named
from patch_compile.targets.table import Table
from patch_compile.targets.target import parse
from patch_compile.whatif import what_if
from tests.runtimes import published
from tests.runtimes.standin import stand_in
from tests.support import Linear, linear_model, random_weight, run_ort

GPU = Gpu("NVIDIA RTX A6000", 86, "550.54", 49140)
RECIPE = CalibrateRecipe(tokens=(16, 128, 1024))


@pytest.fixture
def model(tmp_path: Path, rng: np.random.Generator) -> Path:
    """q (256, 512) and k (128, 512), of one X."""
    both = {"q": 256, "k": 128}
    linears = [Linear(name, random_weight(rng, n, 512)) for name, n in both.items()]
    return linear_model(linears, tmp_path / "model.onnx")


class Law:
    """Times by a law of its own; counts its calls, and stops after some."""

    def __init__(self, most: int = 10**9) -> None:
        self.calls: list[tuple[int, int, int, bool]] = []
        self.most = most

    def __call__(self, m: int, n: int, k: int, *, sparse24: bool) -> Timed:
        if len(self.calls) == self.most:
            raise RuntimeUnavailable("trtexec | was ended by SIGKILL")
        self.calls.append((m, n, k, sparse24))
        return Timed(self.us(m, n, k, sparse24), "10.5.0", None)

    @staticmethod
    def us(m: int, n: int, k: int, sparse24: bool) -> float:
        return 5.0 + m * n * k * (0.6 if sparse24 else 1.0) / 1e7


def test_sizes_are_those_of_weights_merges_and_halves(model: Path) -> None:
    sizes = gemm_sizes(model, CalibrateRecipe(tokens=(64, 16)))
    shapes = list(dict.fromkeys((n, k) for _, n, k in sizes))
    assert shapes == [
        *((256, 512), (128, 512), (256, 256)),
        *((64, 512), (128, 256)),
        *((384, 512), (192, 512), (384, 256)),
    ]
    assert [m for m, *_ in sizes] == [16, 64] * len(shapes)
    plain = gemm_sizes(model, CalibrateRecipe(tokens=(16,), cuts=False))
    assert plain == [(16, 256, 512), (16, 128, 512), (16, 384, 512)]


def test_a_model_without_products_is_told(tmp_path: Path, rng: np.random.Generator) -> None:
    path = linear_model([Linear("odd", random_weight(rng, 64, 30))], tmp_path / "model.onnx")
    with pytest.raises(ModelError, match="in features are a multiple of 4"):
        gemm_sizes(path, RECIPE)


def test_a_table_predicts_what_was_measured_and_a_plan_takes_it(model: Path) -> None:
    output = model.with_name("gpu.json")
    calls: list[tuple[int, int, str]] = []
    table = calibrate(
        model, output, RECIPE, lambda *state: calls.append(state), measure=Law(), gpu=GPU
    )
    assert calls[-1][:2] == (24, 24)
    assert output.read_text("utf-8") == table.to_json()
    assert {path.name for path in model.parent.iterdir()} == {"model.onnx", "gpu.json"}
    target = parse(str(output))
    assert target is parse(str(output))
    assert (target.gpu, target.dtype, target.name) == ("a6000", "fp16", "gpu.json")
    assert not target.estimate
    assert target.basis == (
        "predicted from latencies of TensorRT 10.5.0 on NVIDIA RTX A6000 (driver 550.54), "
        "medians of trtexec by patch-compile calibrate; a 2:4 weight runs as TensorRT chose, "
        "sparse or dense"
    )
    for m, n, k in gemm_sizes(model, RECIPE):
        for sparse24 in (False, True):
            found = target.gemm_us(m, n, k, sparse24=sparse24)
            assert found == pytest.approx(Law.us(m, n, k, sparse24), rel=0.1)
    (row,) = what_if(model, None, [str(output)], CompileRecipe(tokens=("1024",)))
    assert row.target == "gpu.json"
    assert row.speedup > 1.05
    assert not row.extrapolated


def test_a_run_that_was_stopped_goes_on_where_it_was(model: Path) -> None:
    output = model.with_name("gpu.json")
    with pytest.raises(RuntimeUnavailable, match="SIGKILL"):
        calibrate(model, output, RECIPE, measure=Law(most=11), gpu=GPU)
    part = model.with_name("gpu.part.json")
    assert len(json.loads(part.read_text("utf-8"))["rows"]) == 5
    assert not output.exists()
    rest = Law()
    stopped = calibrate(model, output, RECIPE, measure=rest, gpu=GPU)
    assert len(rest.calls) == 2 * (24 - 5)
    assert not part.exists()
    whole = calibrate(model, model.with_name("whole.json"), RECIPE, measure=Law(), gpu=GPU)
    assert stopped.to_json() == whole.to_json()


def test_measurements_of_another_gpu_are_not_mixed(model: Path) -> None:
    output = model.with_name("gpu.json")
    with pytest.raises(RuntimeUnavailable):
        calibrate(model, output, RECIPE, measure=Law(most=4), gpu=GPU)
    other = Gpu("NVIDIA L4", 89, "550.54", 23034)
    with pytest.raises(ModelError, match=r"not of .*NVIDIA L4.*; delete the file") as caught:
        calibrate(model, output, RECIPE, measure=Law(), gpu=other)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["{}", "[" * 900 + "]" * 900, '{"of": {}, "rows": [[Infinity, 1, 1, 1, 1]]}']
)
def test_damaged_measurements_are_told(model: Path, text: str) -> None:
    model.with_name("gpu.part.json").write_text(text)
    with pytest.raises(ModelError, match="cannot be read"):
        calibrate(model, model.with_name("gpu.json"), RECIPE, measure=Law(), gpu=GPU)


@pytest.mark.parametrize("median", [0.0, float("nan")])
def test_a_time_that_no_product_takes_is_refused(median: float) -> None:
    spread = Spread(median, median, median, median)
    found = Evidence("trtexec", performance=Performance(compute=spread))
    with pytest.raises(RuntimeUnavailable, match=r"told .* ms of a product of 16 x 8 x 4"):
        timed(found, (16, 8, 4))


@pytest.mark.skipif(bool(find_gpus()), reason="there is a GPU")
def test_without_a_gpu_it_is_refused_in_one_line(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["calibrate", str(model), "-o", str(model.with_name("gpu.json"))]) == 1
    said = capsys.readouterr().err.strip()
    assert said.startswith("patch-compile: GPU | nvidia-smi finds none")
    assert "\n" not in said
    assert [path.name for path in model.parent.iterdir()] == ["model.onnx"]


def test_a_dry_run_lists_the_products(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["calibrate", str(model), "--tokens", "16,64", "--no-cuts", "--dry-run"]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[:2] == ["16 x 256 x 512", "64 x 256 x 512"]
    assert "6 products" in said.err


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA RTX A6000", "a6000"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx6000ada"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA GB10", "gb10"),
        ("NVIDIA L40", None),
        ("NVIDIA GeForce RTX 4080 SUPER", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("Tesla V100-SXM2-16GB", None),
        # Other memories than on the sheets.
        ("NVIDIA A100-PCIE-40GB", None),
        ("NVIDIA A100-SXM4-40GB", None),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GeForce RTX 4090 D", None),
    ],
)
def test_a_driver_s_name_tells_the_datasheet_or_nothing(name: str, key: str | None) -> None:
    assert named(name) == key


def test_a_gpu_without_a_datasheet_wants_the_nearest(model: Path) -> None:
    strange = Gpu("NVIDIA L40", 89, "550.54", 46068)
    with pytest.raises(RecipeError, match=r"GPU 'NVIDIA L40' \| has no datasheet.*--like"):
        calibrate(model, model.with_name("t.json"), RECIPE, measure=Law(), gpu=strange)
    recipe = CalibrateRecipe(tokens=(16, 128, 1024), like="l40s")
    table = calibrate(model, model.with_name("t.json"), recipe, measure=Law(), gpu=strange)
    assert table.gpu == "l40s"
    with pytest.raises(RecipeError, match=r"like 'l41' \| has no datasheet"):
        calibrate(
            model,
            model.with_name("t.json"),
            CalibrateRecipe(like="l41"),
            measure=Law(),
            gpu=strange,
        )


def test_the_output_is_what_target_takes(model: Path) -> None:
    with pytest.raises(RecipeError, match=r"table '.*gpu\.csv' \| is no \.json file"):
        calibrate(model, model.with_name("gpu.csv"), RECIPE, measure=Law(), gpu=GPU)


def test_a_target_that_is_no_table_is_told(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"target '.*none\.json' \| cannot be read"):
        parse(str(tmp_path / "none.json"))
    (tmp_path / "some.json").write_text("[]")
    with pytest.raises(ModelError, match=r"table 'some\.json' \| is no latency table"):
        parse(str(tmp_path / "some.json"))
    (tmp_path / "masks.json").write_text('{"version": 2, "weights": {}}')
    with pytest.raises(ModelError, match=r"table 'masks\.json' \| .*: it has no 'points';"):
        parse(str(tmp_path / "masks.json"))
    with pytest.raises(ModelError, match="has no points; expected measured products"):
        Table("a100", "bf16", {}, "a test")
    bare = Table("a100", "bf16", {"x": np.ones((1, 5))}, "a test")
    (tmp_path / "bare.json").write_text(bare.to_json())
    with pytest.raises(ModelError, match="has parameters of nothing; expected those of dense"):
        parse(str(tmp_path / "bare.json"))


# One product


@pytest.mark.parametrize("sparse24", [False, True])
def test_the_network_of_one_product_is_that_product(tmp_path: Path, sparse24: bool) -> None:
    path = tmp_path / "gemm.onnx"
    ir.save(gemm_model(3, 8, 16, "fp16", sparse24=sparse24), path)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["MatMul"]
    weight = onnx.numpy_helper.to_array(model.graph.initializer[0])
    kept = np.count_nonzero(weight.reshape(4, 4, 8), axis=1)
    assert (kept == (2 if sparse24 else 4)).all()
    x = np.random.default_rng(0).standard_normal((3, 16)).astype(np.float16)
    found = run_ort(path, {"x": x}, optimise=True)["y"]
    expected = x.astype(np.float32) @ weight.astype(np.float32)
    # Sums of 16 products below 4 in float16.
    np.testing.assert_allclose(found, expected, atol=0.02)


def test_bf16_products_have_bf16_weights() -> None:
    model = gemm_model(3, 8, 16, "bf16", sparse24=False)
    assert model.graph.initializers["w"].dtype == ir.DataType.BFLOAT16


def test_trtexec_s_median_is_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = stand_in(
        tmp_path,
        log=published.ISSUE_4177,
        during="open('seen.txt', 'a').write(repr(sys.argv) + chr(10))",
    )
    monkeypatch.setenv("TRTEXEC", str(tool))
    monkeypatch.chdir(tmp_path)
    found = time_gemm(16, 8, 16, "fp16", sparse24=True, timeout=30.0)
    assert found.version == "10.5.0"
    assert found.us == pytest.approx(7141.39)
    dense = time_gemm(16, 8, 16, "fp16", sparse24=False, timeout=30.0)
    assert dense.us == found.us
    first, second = (tmp_path / "seen.txt").read_text().splitlines()
    assert "--sparsity=enable" in first
    assert "--sparsity=disable" in second
    assert "Shapes" not in first


def test_a_log_without_times_is_no_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRTEXEC", str(stand_in(tmp_path)))
    with pytest.raises(RuntimeUnavailable, match="told no GPU compute time"):
        time_gemm(16, 8, 16, "fp16", sparse24=True, timeout=30.0)


def test_without_trtexec_the_first_product_says_so(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trtexec, "find_trtexec", lambda: None)
    with pytest.raises(RuntimeUnavailable, match=r"program 'trtexec' \| "):
        calibrate(model, model.with_name("gpu.json"), RECIPE, gpu=GPU)
