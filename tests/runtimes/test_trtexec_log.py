"""Logs are read as they were published, and silence stays silence."""

import pytest

from patch_compile.runtimes.evidence import (
    DeviceMemory,
    Performance,
    Sparsity,
    Spread,
    sparse_kernel,
)
from patch_compile.runtimes.trtexec_log import (
    read_device,
    read_errors,
    read_memory,
    read_performance,
    read_sparsity,
    read_version,
    stage,
)
from tests.runtimes import published


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        (published.GUIDE_OLD, Sparsity(3, ("conv1", "conv2", "conv3"), 2, ("conv2", "conv3"))),
        (published.ISSUE_1403, Sparsity(1, ("Conv_0",), 0, ())),
        (published.ISSUE_1340, Sparsity(0, (), 0, ())),
        (published.JETSON_NEW, Sparsity(39, None, 0, ())),
        (
            published.VERBOSE_NEW.format(a="a", b="b", c="c"),
            Sparsity(3, ("a", "b + act", "c"), 1, ("b + act",)),
        ),
    ],
)
def test_both_generations_of_sparsity_lines_are_read(log: str, expected: Sparsity) -> None:
    assert read_sparsity(log.splitlines(keepends=True)) == expected


def test_no_lines_is_unknown_and_not_none_chosen() -> None:
    assert read_sparsity(published.ISSUE_4177.splitlines()) == Sparsity()
    assert Sparsity().chose is None


def test_the_last_pass_counts() -> None:
    log = published.GUIDE_OLD + published.VERBOSE_NEW.format(a="x", b="y", c="z")
    assert read_sparsity(log.splitlines()).chose == 1


def test_a_pass_that_never_chose_is_unknown() -> None:
    log = published.GUIDE_OLD + "(Sparsity) Found 5 layer(s) eligible to use sparse tactics\n"
    assert read_sparsity(log.splitlines()) == Sparsity(5, None, None, None)


def test_a_list_that_does_not_add_up_is_no_list() -> None:
    line = "(Sparsity) Chose 3 layer(s) using sparse tactics: a, b"
    assert read_sparsity([line]) == Sparsity(None, None, 3, None)


def test_throughput_and_latencies_are_read() -> None:
    percentiles = ((90.0, 10.2881), (95.0, 10.8175), (99.0, 12.9485))
    found = read_performance(published.ISSUE_4177.splitlines())
    assert found is not None
    assert found.throughput == 130.298
    assert found.compute == Spread(5.34595, 13.3388, 7.58404, 7.14139, percentiles)
    assert found.latency is not None
    assert found.latency.median == 7.16092
    assert found.build is None


def test_older_logs_give_one_percentile() -> None:
    found = read_performance(published.ISSUE_1403_TIMES.splitlines())
    spread = Spread(1.81982, 3.1843, 2.05464, 2.02905, ((99.0, 2.29761),))
    assert found == Performance(501.618, spread, None, None)


def test_build_time_is_read_and_nothing_is_none() -> None:
    assert read_performance(published.ISSUE_1340.splitlines()) == Performance(build=31.1935)
    assert read_performance(published.GUIDE_OLD.splitlines()) is None


@pytest.mark.parametrize(
    ("banner", "version"),
    [
        (published.ISSUE_1340, (8, 4, 2)),
        (published.HELP_10, (10, 5, 0)),
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v101602] [b10] # x", (10, 16, 2)),
        (published.HELP_11, (11, 1, 0)),
        ("no banner", None),
    ],
)
def test_version_is_read_off_the_banner(
    banner: str, version: tuple[int, int, int] | None
) -> None:
    assert read_version(banner) == version


def test_device_is_read() -> None:
    assert read_device(published.ISSUE_3747.splitlines()) == ("NVIDIA GeForce RTX 2080", 75)
    assert read_device(published.GUIDE_OLD.splitlines()) == ("", None)


def test_errors_are_read_without_their_time() -> None:
    lines = [
        "[03/29/2026-18:58:09] [I] fine",
        "[03/29/2026-18:58:09] [E] Model missing or format not recognized",
        "[03/29/2026-18:58:09] [E] [TRT] IBuilder::buildSerializedNetwork: Error Code 10",
        "INTERNAL_ERROR: of the Python builder",
    ]
    assert read_errors(lines) == [
        "Model missing or format not recognized",
        "IBuilder::buildSerializedNetwork: Error Code 10",
        "of the Python builder",
    ]


def test_milestones_go_forward() -> None:
    lines = [
        "&&&& RUNNING TensorRT.trtexec [TensorRT v100500]",
        "[I] Start parsing network model.",
        "[I] Finished parsing network model. Parse time: 0.1",
        "[I] Engine built in 31.1935 sec.",
        "[I] === Performance summary ===",
        "&&&& PASSED TensorRT.trtexec",
    ]
    states = [stage(line) for line in lines]
    done = [state[0] for state in states if state is not None]
    assert done == sorted(set(done))
    assert len(done) == len(lines)
    assert states[-1] is not None
    assert states[-1][0] == states[-1][1]
    assert stage("[V] [TRT] a tactic") is None


@pytest.mark.parametrize(
    ("tactic", "sparse"),
    [
        (
            "sm80_xmma_sparse_gemm_i8i8_i8i32_f32_tn_n_tilesize128x128x128_stage3_sptensor16x8x64",
            True,
        ),
        ("sm80_xmma_fprop_avdt_sparse_int8int8_tilesize64x64x64", True),
        ("sm80_xmma_sparse_conv_fprop", True),
        ("cutlass_80_spmma_f16_s16832gemm", True),
        (
            "sm80_xmma_gemm_f16f16_f16f32_f32_tn_n_tilesize128x128x64_stage4_tensor16x8x16",
            False,
        ),
        ("ampere_h16816gemm_256x128_ldg8_nn_v1", False),
        ("", False),
    ],
)
def test_sparse_kernels_are_told_by_name(tactic: str, sparse: bool) -> None:
    assert sparse_kernel(tactic) is sparse


@pytest.mark.parametrize(
    ("log", "expected", "total"),
    [
        (published.MEMORY_10, DeviceMemory(34082304, 0, 2478873600), 2512955904),
        # What the context took is known better than what the builder foresaw.
        (
            published.MEMORY_10 + published.CONTEXT_10,
            DeviceMemory(34082304, 0, 2478873600, 467884048),
            501966352,
        ),
        (published.MEMORY_OLD, DeviceMemory(persistent=125895680), None),
        (published.ISSUE_1340, DeviceMemory(activations=7864832), None),
        (published.JETSON_NEW, DeviceMemory(), None),
        ("[I] [TRT] Total Weights Memory: 10^9 bytes", DeviceMemory(), None),
        (f"[I] [TRT] Total Weights Memory: {'9' * 5000} bytes", DeviceMemory(), None),
    ],
)
def test_memory_is_what_the_log_names_and_no_sum_of_half(
    log: str, expected: DeviceMemory, total: int | None
) -> None:
    found = read_memory(log.splitlines())
    assert (found, found.total) == (expected, total)


def test_memory_is_that_of_the_last_engine() -> None:
    later = "[I] [TRT] Total Activation Memory: 5 bytes"
    assert read_memory([*published.MEMORY_10.splitlines(), later]).activations == 5
