"""A model learns what a table shows, and predicts what it was not shown."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from patch_compile.errors import ModelError
from patch_compile.targets.datasheets import GPUS
from patch_compile.targets.features import features, log_roofline
from patch_compile.targets.fitting import _loss, fit_parameters
from patch_compile.targets.model import LatencyModel, fitted
from patch_compile.targets.process import PARAMETERS, Process, matern
from patch_compile.targets.table import Table
from patch_compile.targets.target import load

Floats = NDArray[np.float64]


def _made_up(gpu: str = "a100") -> Table:
    """A GPU whose kernels lose a fixed share, a 2:4 kernel more on few tokens."""
    sizes = np.array(
        [[m, n, k] for m in (64, 256, 1024, 4096) for n in (2048, 4096) for k in (2048, 8192)],
        np.float64,
    )
    dense = np.exp(log_roofline(sizes, GPUS[gpu], "bf16", sparse24=False)) * 1.2
    sparse = np.exp(log_roofline(sizes, GPUS[gpu], "bf16", sparse24=True))
    sparse *= 1.2 + 10 / sizes[:, 0]
    return Table(gpu, "bf16", {"made up": np.column_stack([sizes, dense, sparse])}, "a test")


@pytest.fixture(scope="module")
def made_up() -> Table:
    return fitted(_made_up())


def test_what_was_not_measured_is_predicted_from_its_neighbours(made_up: Table) -> None:
    model = LatencyModel(made_up, GPUS["a100"], "bf16")
    sizes = np.array([[512.0, 3072, 4096], [128.0, 2048, 4096]])
    for sparse24 in (False, True):
        bound = log_roofline(sizes, GPUS["a100"], "bf16", sparse24=sparse24)
        lost = np.log(1.2 + (10 / sizes[:, 0] if sparse24 else 0))
        found = model.log_us(sizes, sparse24=sparse24) - bound
        np.testing.assert_allclose(found, lost, atol=0.06)


def test_a_model_of_one_kind_left_out_is_predicted_within_its_interval() -> None:
    """On the real table: Qwen's shapes from those of the other models."""
    table = load("a100", "bf16").model.table
    kept = {o: rows for o, rows in table.points.items() if o != "Qwen2.5-7B"}
    model = LatencyModel(fitted(replace(table, points=kept)), GPUS["a100"], "bf16")
    rows = table.points["Qwen2.5-7B"]
    for column, sparse24 in ((3, False), (4, True)):
        off = model.log_us(rows[:, :3], sparse24=sparse24) - np.log(rows[:, column])
        assert np.median(np.abs(off)) < 0.05
        wide = 1.645 * model.deviation(rows[:, :3], sparse24=sparse24)
        assert np.mean(np.abs(off) < wide) > 0.75


def test_an_estimate_scales_with_the_datasheet(made_up: Table) -> None:
    own = LatencyModel(made_up, GPUS["a100"], "bf16")
    half = replace(GPUS["a100"], bandwidth=2039 / 2, tflops=156.0)
    other = LatencyModel(made_up, half, "bf16")
    sizes = np.array([[4096.0, 8192, 8192]])
    ratio = np.exp(other.log_us(sizes, sparse24=False) - own.log_us(sizes, sparse24=False))
    assert other.estimate
    assert not own.estimate
    assert ratio[0] == pytest.approx(2.0, rel=0.05)


def test_posterior_is_that_of_a_plain_solve(rng: np.random.Generator) -> None:
    x = _random_features(rng, 30)
    y = rng.normal(size=30)
    parameters = rng.normal(scale=0.3, size=PARAMETERS)
    parameters[-1] = np.log(0.1)
    process = Process(x, y, parameters)
    at = _random_features(rng, 5)
    covariance, across, own = (_slow(a, b, parameters) for a, b in ((x, x), (at, x), (at, at)))
    covariance = covariance + 0.01 * np.eye(30)
    centre = np.median(y)
    mean = centre + across @ np.linalg.solve(covariance, y - centre)
    np.testing.assert_allclose(process.mean(at), mean, rtol=1e-6)
    variance = np.diag(own - across @ np.linalg.solve(covariance, across.T)) + 0.01
    np.testing.assert_allclose(process.deviation(at), np.sqrt(variance), rtol=1e-6)


def _random_features(rng: np.random.Generator, count: int) -> Floats:
    sizes = np.exp2(rng.uniform(6, 14, size=(count, 3))).round()
    return features(sizes, GPUS["a100"], "bf16", sparse24=False)


def _slow(a: Floats, b: Floats, p: Floats) -> Floats:
    """The covariance in its plainest form, an entry at a time."""
    out = np.zeros((len(a), len(b)))
    for i, u in enumerate(a):
        for j, v in enumerate(b):
            means = [np.r_[1, (w[:3] - 10) / 5, w[3:6]] for w in (u, v)]
            out[i, j] = 0.3 * means[0] @ means[1]
            for part, start in ((slice(0, 3), 0), (slice(3, 8), 4)):
                count = part.stop - part.start
                lengths = np.exp(p[start : start + count])
                r = np.sqrt(3 * (((u[part] - v[part]) / lengths) ** 2).sum())
                out[i, j] += np.exp(2 * p[start + count]) * (1 + r) * np.exp(-r)
    return out


def test_gradient_of_the_likelihood_is_that_of_differences(rng: np.random.Generator) -> None:
    x, y = _random_features(rng, 20), rng.normal(size=20)
    at = rng.normal(scale=0.3, size=PARAMETERS)
    prior = np.zeros(PARAMETERS), np.ones(PARAMETERS)
    _, gradient = _loss(at, x, y, *prior)
    for index in range(PARAMETERS):
        step = np.zeros(PARAMETERS)
        step[index] = 1e-5
        rise = _loss(at + step, x, y, *prior)[0] - _loss(at - step, x, y, *prior)[0]
        assert rise / 2e-5 == pytest.approx(gradient[index], rel=1e-4, abs=1e-4)


def test_fitting_finds_noise_and_smoothness(rng: np.random.Generator) -> None:
    x = _random_features(rng, 80)
    smooth = 0.3 * np.sin(x[:, 0])
    quiet = fit_parameters(x, smooth + rng.normal(scale=0.02, size=80))
    loud = fit_parameters(x, smooth + rng.normal(scale=0.2, size=80))
    assert np.exp(quiet[-1]) < 0.06 < 0.12 < np.exp(loud[-1]) < 0.3
    # M, which matters, has a shorter length than K, which does not.
    assert quiet[0] < quiet[2]


def test_matern_is_one_at_home_and_falls_with_distance() -> None:
    a = np.array([[0.0, 0.0], [1.0, 0.0], [3.0, 0.0]])
    kernel = matern(a, a, np.zeros(2))
    np.testing.assert_allclose(np.diag(kernel), 1.0)
    root = np.sqrt(3)
    assert kernel[0, 1] == pytest.approx((1 + root) * np.exp(-root))
    assert kernel[0, 1] > kernel[1, 2] > kernel[0, 2]


def test_waves_are_whole_only_when_tiles_fill_the_gpu() -> None:
    """108 multiprocessors: 12 x 9 tiles of 128 fill them once; one row more needs a second."""
    full, more = (
        np.array([[12.0 * 128, 9 * 128, 4096]]),
        np.array([[12.0 * 128 + 1, 1152, 4096]]),
    )
    filled, spilled = (
        features(sizes, GPUS["a100"], "bf16", sparse24=False)[0, 3] for sizes in (full, more)
    )
    assert filled == pytest.approx(0.0)
    assert spilled == pytest.approx(np.log2(2 * 108 / (13 * 9)))


def test_roofline_of_24_is_half_the_sums_and_nine_sixteenths_of_the_weight() -> None:
    gpu = replace(GPUS["a100"], bandwidth=1.0)
    sizes = np.array([[1.0, 4096, 4096]])
    dense, sparse = (
        np.exp(log_roofline(sizes, gpu, "bf16", sparse24=kind)) for kind in (False, True)
    )
    assert sparse[0] / dense[0] == pytest.approx(9 / 16, rel=1e-3)


def test_table_survives_a_round_trip(made_up: Table) -> None:
    again = Table.from_json(made_up.to_json())
    assert again.to_json() == made_up.to_json()
    np.testing.assert_allclose(again.log_us, made_up.log_us, rtol=1e-5)
    assert again.points.keys() == made_up.points.keys()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"gpu": "v100"}, "is of 'v100' and 'bf16'; expected a GPU of a100"),
        ({"dtype": "fp4"}, "is of 'a100' and 'fp4'"),
        ({"points": {"x": np.array([[1.0, 2, 3, 0, 4]])}}, "has rows of 'x' that are not"),
        ({"points": {"x": np.array([[1.0, 2]])}}, "has rows of 'x' that are not"),
        ({"parameters": {"dense": np.zeros(2)}}, "has 2 parameters of 'dense'"),
    ],
)
def test_a_damaged_table_is_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        replace(_made_up(), **change)  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"version": 1, "points": {"x": ["y"]}}'])
def test_text_that_is_no_table_is_refused(text: str) -> None:
    with pytest.raises(ModelError, match="is no latency table"):
        Table.from_json(text)


def test_a_table_of_another_version_is_refused() -> None:
    text = _made_up().to_json().replace('"version": 1', '"version": 2')
    with pytest.raises(ModelError, match="has version 2; expected 1"):
        Table.from_json(text)
