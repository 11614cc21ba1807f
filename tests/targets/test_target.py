"""What a target says is what was measured, within physics, and marked where it is guessed."""

from importlib.resources import files
from statistics import median

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patch_compile import targets
from patch_compile.errors import RecipeError
from patch_compile.targets.table import Table
from patch_compile.targets.target import LAUNCH_GAP_US, Target, parse

MEASURED = (
    *("a100-bf16", "a100-fp16", "a100-int8", "h100-bf16", "h100-int8", "h100-fp8"),
    *("b200-bf16", "b200-fp16", "b200-fp8", "rtx4090-bf16", "rtx4090-fp16"),
    *("rtx4090-int8", "rtx4090-fp8", "rtx5080-bf16", "rtx5080-fp16", "rtx5080-int8"),
    *("rtx5080-fp8", "gb10-bf16", "gb10-fp16", "gb10-int8", "gb10-fp8"),
)
everything = [
    f"{gpu}-{dtype}" for gpu, dtypes in targets.available().items() for dtype in dtypes
]

sizes = st.integers(1, 2**17)


def test_every_table_is_measured_and_everything_else_is_an_estimate() -> None:
    assert {name for name in everything if not parse(name).estimate} == set(MEASURED)
    assert {"a6000-bf16", "rtx3090-fp16", "a10-int8", "l4-fp8", "l40s-fp8"} < set(everything)
    # Too few points, and a dense baseline that is broken.
    assert parse("h100-fp16").estimate
    assert "int8" not in targets.available()["b200"]


def test_an_estimate_says_so_everywhere() -> None:
    estimate, measured = parse("a6000-bf16"), parse("a100-bf16")
    assert estimate.basis == (
        "an estimate, scaled from latencies measured on a100-bf16 by datasheets"
    )
    assert measured.basis == "predicted from measured GEMM latencies"
    guess, known = (t.predict(512, 4096, 4096) for t in (estimate, measured))
    assert (guess.estimate, known.estimate) == (True, False)
    assert guess.high / guess.low > known.high / known.low


def test_tokens_that_were_not_measured_are_said_to_be_extrapolated() -> None:
    target = parse("h100-bf16")
    assert [target.measured(tokens) for tokens in (63, 64, 16384, 16385)] == [0, 1, 1, 0]
    assert target.basis_at((64, 2048)) == target.basis
    assert target.basis_at((16, 2048, 32768)) == (
        "predicted from measured GEMM latencies; 16 and 32,768 tokens by extrapolation, from "
        "64 to 16,384 were measured"
    )


@pytest.mark.parametrize("name", MEASURED)
def test_no_table_has_fewer_than_64_tokens(name: str) -> None:
    """What documentation says of all of them."""
    assert parse(name).measured_tokens[0] == 64


@pytest.mark.parametrize("name", MEASURED)
def test_a_measured_point_is_met(name: str) -> None:
    target = parse(name)
    rows = np.concatenate(list(target.model.table.points.values()))
    for column, sparse24 in ((3, False), (4, True)):
        found = target.gemms_us(rows[:, :3].astype(np.int64), sparse24=sparse24)
        assert median(np.abs(found / rows[:, column] - 1)) < 0.03


def test_one_query_and_many_agree() -> None:
    target = targets.load("h100", "fp8")
    queries = np.array([[16, 4096, 4096], [2048, 100, 40], [1, 1, 1]])
    many = target.gemms_us(queries, sparse24=True)
    for query, us in zip(queries.tolist(), many, strict=True):
        assert target.gemm_us(*query, sparse24=True) == pytest.approx(us, rel=1e-9)
        assert target.predict(*query, sparse24=True).us == pytest.approx(us, rel=1e-9)


@given(st.sampled_from(everything), sizes, sizes, sizes, st.booleans())
def test_predictions_are_positive_finite_and_within_their_interval(
    name: str, m: int, n: int, k: int, sparse24: bool
) -> None:
    found = parse(name).predict(m, n, k, sparse24=sparse24)
    assert 0 < found.low < found.us < found.high < float("inf")
    assert found.outside >= 0
    assert found.nearest >= found.outside


@pytest.mark.parametrize("name", everything)
def test_no_kernel_beats_the_datasheet(name: str) -> None:
    """Twice the dense rate for 2:4, and the sheet's dense rate, with a tenth of slack."""
    target = parse(name)
    gpu, us = target.model.gpu, target.gemms_us(np.array([[8192] * 3]))[0]
    assert us > 0.9 * 2 * 8192**3 / gpu.rate(target.dtype)
    assert target.gemm_us(8192, 8192, 8192, sparse24=True) > 0.45 * us


@pytest.mark.parametrize("name", MEASURED)
def test_twice_the_tokens_of_a_large_product_take_about_twice_as_long(name: str) -> None:
    target = parse(name)
    grown = target.gemm_us(16384, 4096, 4096) / target.gemm_us(8192, 4096, 4096)
    assert 1.5 < grown < 2.7


@pytest.mark.parametrize("name", everything)
def test_fewer_tokens_than_measured_read_the_weight_all_the_same(name: str) -> None:
    target = parse(name)
    one, measured = target.gemm_us(1, 8192, 8192), target.gemm_us(64, 8192, 8192)
    assert 0.4 * measured < one <= measured


def test_the_further_away_the_wider_the_interval() -> None:
    target = targets.load("a100", "bf16")
    inside, few = target.predict(64, 4096, 4096), target.predict(1, 4096, 4096)
    assert inside.outside == 0
    assert few.outside == 6
    assert few.high / few.low > inside.high / inside.low


def test_odd_sizes_widen_the_interval() -> None:
    target = targets.load("a100", "bf16")
    even, odd = target.predict(512, 4096, 4096), target.predict(512, 4095, 4096)
    assert odd.high / odd.low > 1.3 * even.high / even.low


def test_the_table_decides_when_24_pays() -> None:
    """From few tokens on an A100, later on an H100; see the measured latencies."""
    a100, h100 = targets.load("a100", "bf16"), targets.load("h100", "bf16")
    gain = {
        target.gpu: target.gemm_us(128, 4096, 4096)
        / target.gemm_us(128, 4096, 4096, sparse24=True)
        for target in (a100, h100)
    }
    assert gain["a100"] > 1.1 > gain["h100"]
    assert h100.gemm_us(2048, 4096, 4096) > 1.2 * h100.gemm_us(2048, 4096, 4096, sparse24=True)


def test_a_weight_is_read_at_the_datasheets_bandwidth() -> None:
    target = targets.load("rtx5080", "bf16")
    assert target.weight_us(12288, 4096, sparse24=False) == pytest.approx(
        2 * 12288 * 4096 / 960e3
    )
    assert target.weight_us(4096, 64, sparse24=True) == pytest.approx(
        9 / 16 * target.weight_us(4096, 64, sparse24=False)
    )


def test_copies_cost_their_bytes_and_a_launch() -> None:
    target = targets.load("a100", "bf16")
    nothing, million = target.moved_us(0), target.moved_us(10**6)
    assert nothing > LAUNCH_GAP_US
    # 4 bytes an element, read and written, at four fifths of 2,039 GB/s.
    assert million - nothing == pytest.approx(4e6 / (0.8 * 2039e3))
    assert target.added_us(10**6) - nothing == pytest.approx(6e6 / (0.8 * 2039e3))
    assert targets.load("rtx4090", "bf16").moved_us(10**6) > million


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a100", "target 'a100' | names no dtype; expected a GPU and a dtype"),
        ("v100", "target GPU 'v100' | is unknown; expected one of a100, h100, b200"),
        ("v100-fp16", "target GPU 'v100' | is unknown; expected one of a100, h100, b200"),
        (
            "a100-fp8",
            "target dtype 'fp8' | is unknown on a100; expected one of bf16, fp16, int8",
        ),
        ("A100-bf16", "target GPU 'A100' | is unknown; expected one of a100"),
    ],
)
def test_unknown_names_are_told_with_what_exists(name: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse(name)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


def test_a_size_of_zero_is_refused() -> None:
    target = targets.load("a100", "bf16")
    with pytest.raises(RecipeError, match=r"size of a product \| is 0"):
        target.gemm_us(0, 16, 16)
    with pytest.raises(RecipeError, match=r"size of a product \| is 0"):
        target.predict(16, 0, 16)


def test_targets_are_made_once() -> None:
    assert targets.load("a100", "bf16") is targets.load("a100", "bf16")
    assert isinstance(parse("a100-bf16"), Target)


def test_every_shipped_file_is_a_table_of_its_name() -> None:
    folder = files("patch_compile.targets") / "tables"
    for entry in folder.iterdir():
        text = entry.read_text("utf-8")
        table = Table.from_json(text)
        assert entry.name == f"{table.gpu}-{table.dtype}.json"
        assert "Apache-2.0" in table.source
        assert table.to_json() == text
