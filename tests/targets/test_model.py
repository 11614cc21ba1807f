"""A model learns what a table shows, and predicts what it was not shown."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from patch_compile.errors import ModelError
from patch_compile.targets.datasheets import GPUS
from patch_compile.targets.features import features, log_roofline
from patch_compile.targets.fitting import (
    _loss,
    all_parameters,
    fit_parameters,
    free_parameters,
)
from patch_compile.targets.model import LatencyModel, fitted
from patch_compile.targets.process import Points, Process, matern
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
    return fitted([_made_up()])[0]


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
    model = LatencyModel(fitted([replace(table, points=kept)])[0], GPUS["a100"], "bf16")
    rows = table.points["Qwen2.5-7B"]
    for column, sparse24 in ((3, False), (4, True)):
        off = model.log_us(rows[:, :3], sparse24=sparse24) - np.log(rows[:, column])
        assert np.median(np.abs(off)) < 0.05
        wide = 1.645 * model.deviation(rows[:, :3], sparse24=sparse24)
        assert np.mean(np.abs(off) < wide) > 0.75


def test_which_is_faster_is_what_the_pooled_ratio_says() -> None:
    """On a target where the average of the others says otherwise of some sizes."""
    model = load("rtx4090", "fp8").model
    sizes = np.array(
        [[m, n, k] for m in (64, 128, 256) for n in (2048, 3584, 6144) for k in (2048, 4096)],
        np.float64,
    )
    dense, sparse = (
        log_roofline(sizes, model.gpu, "fp8", sparse24=kind) for kind in (False, True)
    )
    lost = model._lost(sizes)
    pooled = dense - sparse + lost["pooled"]
    alone = dense + lost["dense"] - sparse - lost["sparse24"]
    average = 0.5 * (alone + dense - sparse + lost["ratio"])
    agree = pooled * average > 0
    assert 0 < agree.sum() < len(agree)
    found = _log_ratio(model, sizes)
    np.testing.assert_allclose(found, np.where(agree, average, pooled))
    np.testing.assert_array_equal(found > 0, pooled > 0)


def test_one_dtype_tells_of_the_ratio_of_another() -> None:
    """At 256 tokens 2:4 is far slower on both; bf16 was not measured there."""
    table = _made_up()
    (rows,) = table.points.values()
    cliff = rows[:, 0] == 256
    rows[cliff, 4] *= 4
    fp16 = replace(table, dtype="fp16")
    bf16, other = fitted([replace(table, points={"made up": rows[~cliff]}), fp16])
    models = (LatencyModel(bf16, GPUS["a100"], "bf16", beside) for beside in ((), (other,)))
    dense, sparse = rows[cliff, 3], rows[cliff, 4]
    alone, both = (
        np.abs(_log_ratio(model, rows[cliff, :3]) - np.log(dense / sparse)).mean()
        for model in models
    )
    assert both < 0.7 * alone


def _log_ratio(model: LatencyModel, sizes: Floats) -> Floats:
    return model.log_us(sizes, sparse24=False) - model.log_us(sizes, sparse24=True)


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
    points = _random_points(rng, 30)
    parameters = all_parameters(rng.normal(scale=0.3, size=_FREE), 11)
    parameters[:, -1] = np.log([0.1, 0.2])
    process = Process(points, parameters)
    at = _random_features(rng, 5)
    kinds = np.full(5, 1)
    sets = (points.x, points.kinds), (at, kinds)
    covariance, across, own = (
        _slow(*sets[a], *sets[b], points.alike, parameters)
        for a, b in ((0, 0), (1, 0), (1, 1))
    )
    covariance = covariance + np.diag(np.where(points.kinds == 0, 0.01, 0.04))
    centres = [np.median(points.y[points.kinds == kind]) for kind in (0, 1)]
    off = points.y - np.take(centres, points.kinds)
    mean = centres[1] + across @ np.linalg.solve(covariance, off)
    np.testing.assert_allclose(process.mean(at, 1), mean, rtol=1e-6)
    variance = np.diag(own - across @ np.linalg.solve(covariance, across.T)) + 0.04
    np.testing.assert_allclose(process.deviation(at, 1), np.sqrt(variance), rtol=1e-6)


# Free parameters of two kinds: 11 lengths, and of each kind two deviations and a noise.
_FREE = 11 + 2 * 3


def _random_features(rng: np.random.Generator, count: int) -> Floats:
    sizes = np.exp2(rng.uniform(6, 14, size=(count, 3))).round()
    return features(sizes, GPUS["a100"], "bf16", sparse24=False)


def _random_points(rng: np.random.Generator, count: int) -> Points:
    alike = np.array([[1.0, 0.6], [0.6, 1.0]])
    kinds = np.arange(count) % 2
    return Points(_random_features(rng, count), kinds, rng.normal(size=count), alike)


def _slow(
    a: Floats, kinds: Any, b: Floats, others: Any, alike: Floats, parameters: Floats
) -> Floats:
    """The covariance in its plainest form, an entry at a time."""
    out = np.zeros((len(a), len(b)))
    for i, u in enumerate(a):
        for j, v in enumerate(b):
            means = [np.r_[1, (w[:3] - 10) / 5, w[3:6]] for w in (u, v)]
            out[i, j] = 0.3 * means[0] @ means[1]
            for part, start in ((slice(0, 3), 0), (slice(3, 11), 4)):
                count = part.stop - part.start
                lengths = np.exp(parameters[0, start : start + count])
                r = np.sqrt(3 * (((u[part] - v[part]) / lengths) ** 2).sum())
                scales = np.exp(parameters[[kinds[i], others[j]], start + count])
                out[i, j] += scales.prod() * (1 + r) * np.exp(-r)
            out[i, j] *= alike[kinds[i], others[j]]
    return out


def test_gradient_of_the_likelihood_is_that_of_differences(rng: np.random.Generator) -> None:
    points = _random_points(rng, 20)
    at = rng.normal(scale=0.3, size=_FREE)
    prior = np.zeros(_FREE), np.ones(_FREE)
    _, gradient = _loss(at, points, *prior)
    for index in range(_FREE):
        step = np.zeros(_FREE)
        step[index] = 1e-5
        rise = _loss(at + step, points, *prior)[0] - _loss(at - step, points, *prior)[0]
        assert rise / 2e-5 == pytest.approx(gradient[index], rel=1e-4, abs=1e-4)


def test_likelihood_is_that_of_a_normal_distribution(rng: np.random.Generator) -> None:
    points = _random_points(rng, 12)
    at = rng.normal(scale=0.3, size=_FREE)
    parameters = all_parameters(at, 11)
    covariance = _slow(
        points.x, points.kinds, points.x, points.kinds, points.alike, parameters
    )
    covariance += np.diag(np.exp(2 * parameters[points.kinds, -1]))
    _, log_determinant = np.linalg.slogdet(covariance)
    plain = 0.5 * points.off @ np.linalg.solve(covariance, points.off) + 0.5 * log_determinant
    found, _ = _loss(at, points, at, np.ones(_FREE))
    assert found == pytest.approx(plain, rel=1e-6)


def test_free_parameters_are_the_lengths_once_and_the_rest_of_each_kind(
    rng: np.random.Generator,
) -> None:
    free = rng.normal(size=_FREE)
    parameters = all_parameters(free, 11)
    assert parameters.shape == (2, 14)
    np.testing.assert_array_equal(parameters[0, :3], parameters[1, :3])
    assert len(np.unique(parameters[:, [3, 12, 13]])) == 6
    np.testing.assert_array_equal(free_parameters(parameters), free)


def test_fitting_finds_noise_and_smoothness(rng: np.random.Generator) -> None:
    """Kernels of eight columns imitate noise: what counts is the deviation elsewhere."""
    x, at = _random_features(rng, 80), _random_features(rng, 40)
    smooth = 0.3 * np.sin(x[:, 0])
    found = []
    for noise in (0.02, 0.2):
        y = smooth + rng.normal(scale=noise, size=80)
        points = Points(x, np.zeros(80, np.intp), y, np.ones((1, 1)))
        parameters = fit_parameters(points)
        found.append(Process(points, parameters).deviation(at, 0).mean())
        # M, which matters, has a shorter length than K, which does not.
        assert parameters[0, 0] < parameters[0, 2]
    quiet, loud = found
    assert quiet < 0.08
    assert 0.15 < loud < 0.3


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
    text = _made_up().to_json().replace('"version": 2', '"version": 1')
    with pytest.raises(ModelError, match="has version 1; expected 2"):
        Table.from_json(text)
