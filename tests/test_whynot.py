"""Reasons stop where their causes do."""

from dataclasses import replace

import pytest

from patch_compile.whynot import Case, why_not

PLAIN = Case(
    known=True,
    requested=True,
    backend="tensorrt",
    sm=90,
    eligible=True,
    found=True,
    shape=(4096, 4096),
    dtype="float16",
    tokens=4096,
    outputs=("Half",),
    swallowed=False,
    told=True,
)
SLOWER = "timed slower than dense"


def test_without_a_known_cause_timing_is_all_that_is_told() -> None:
    assert why_not(PLAIN) == SLOWER


@pytest.mark.parametrize(
    ("at", "past", "words"),
    [
        ({"shape": (256, 4096)}, {"shape": (257, 4096)}, "narrow, 256 x 4096"),
        ({"shape": (4096, 256)}, {"shape": (4096, 257)}, "narrow, 4096 x 256"),
        ({"tokens": 255}, {"tokens": 256}, "timed at 255 tokens"),
        ({"tokens": 8}, {"tokens": None}, "timed at 8 tokens"),
        ({"dtype": "int8"}, {"dtype": "int8", "outputs": ("Int8",)}, "its output is not int8"),
        ({"dtype": "int8"}, {"dtype": "int8", "outputs": ()}, "its output is not int8"),
    ],
)
def test_a_hint_ends_at_its_limit(
    at: dict[str, object], past: dict[str, object], words: str
) -> None:
    assert words in why_not(replace(PLAIN, **at))  # type: ignore[arg-type]  # fields of Case
    assert why_not(replace(PLAIN, **past)) == SLOWER  # type: ignore[arg-type]  # the same


@pytest.mark.parametrize(
    ("at", "past", "words"),
    [
        ({"sm": 79}, {"sm": 80}, "SM 79 has no sparse tensor cores"),
        ({"sm": 75}, {"sm": None}, "SM 75 has no sparse tensor cores"),
        ({"dtype": "float8e4m3fn", "sm": 88}, {"dtype": "float8e4m3fn", "sm": 89}, "no fp8"),
        ({"dtype": "float"}, {"dtype": "bfloat16"}, "float has no sparse kernels"),
        ({"found": False}, {"found": None}, "TensorRT does not list it as eligible"),
        ({"eligible": False}, {}, "not 2:4 as stored (float16)"),
    ],
)
def test_a_fact_ends_at_its_limit(
    at: dict[str, object], past: dict[str, object], words: str
) -> None:
    assert words in why_not(replace(PLAIN, **at))  # type: ignore[arg-type]  # fields of Case
    assert why_not(replace(PLAIN, **past)) == SLOWER  # type: ignore[arg-type]  # the same


def test_several_causes_are_all_named() -> None:
    said = why_not(replace(PLAIN, shape=(192, 64), tokens=1))
    assert said.startswith(f"{SLOWER}: narrow, 192 x 64; ")
    assert "; timed at 1 tokens; " in said


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (replace(PLAIN, known=False, swallowed=True), "swallowed by Myelin"),
        (replace(PLAIN, known=False), "in no layer that the engine names"),
        (replace(PLAIN, known=False, told=False), "neither log nor inspector told"),
        (
            replace(PLAIN, known=False, told=False, backend="tensorrt_rtx"),
            "TensorRT-RTX tells nothing of kernels without a GPU",
        ),
        (replace(PLAIN, known=False, backend="tensorrt_rtx"), "in no layer that the engine"),
    ],
)
def test_what_nobody_told_has_a_reason_too(case: Case, words: str) -> None:
    assert words in why_not(case)
