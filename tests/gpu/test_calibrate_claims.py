"""What `calibrate` says of a GPU, put to that GPU."""

from pathlib import Path

import numpy as np
import pytest

from patch_compile.calibration import calibrate, gemm_sizes
from patch_compile.recipe import BuildRecipe, CalibrateRecipe
from patch_compile.runtimes.gemm import time_gemm
from patch_compile.runtimes.gpu import Gpu
from patch_compile.targets.datasheets import named
from patch_compile.targets.target import Target, parse
from tests.support import Linear, linear_model, random_weight

pytestmark = pytest.mark.gpu

RECIPE = CalibrateRecipe(tokens=(64, 1024, 4096), cuts=False, timeout=60.0)


@pytest.fixture(scope="session")
def calibrated(
    gpu: Gpu, trtexec: BuildRecipe, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Target]:
    folder = tmp_path_factory.mktemp("calibrate")
    rng = np.random.default_rng(0)
    linears = [
        Linear(n, random_weight(rng, size, 2048)) for n, size in (("a", 2048), ("b", 8192))
    ]
    model = linear_model(linears, folder / "model.onnx", external=True)
    # Any sheet will do: it scales features, and latencies are what is measured.
    recipe = (
        RECIPE
        if named(gpu.name)
        else CalibrateRecipe((64, 1024, 4096), like="a100", cuts=False)
    )
    calibrate(model, folder / "gpu.json", recipe, gpu=gpu)
    return model, parse(str(folder / "gpu.json"))


def test_a_calibrated_table_predicts_its_own_measurements_within_a_tenth(
    calibrated: tuple[Path, Target],
) -> None:
    model, target = calibrated
    rows = target.model.table.points["calibrate"]
    assert len(rows) == len(gemm_sizes(model, RECIPE))
    for column, sparse24 in ((3, False), (4, True)):
        found = target.gemms_us(rows[:, :3].astype(np.int64), sparse24=sparse24)
        assert np.median(np.abs(found / rows[:, column] - 1)) < 0.1


def test_measuring_a_product_again_gives_its_time_within_a_fifth(
    calibrated: tuple[Path, Target],
) -> None:
    _, target = calibrated
    m, n, k, dense, _ = target.model.table.points["calibrate"][-1]
    again = time_gemm(int(m), int(n), int(k), "fp16", sparse24=False, timeout=60.0)
    assert 0.8 < again.us / dense < 1.25
