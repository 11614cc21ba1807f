"""Numbers as people read them."""

import pytest

from patch_compile.page import formats


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0032, "3.2 ms"),
        (0.0123456, "12.3 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1,000 ms"),
        (1.0534, "1,053 ms"),
        (None, "unknown"),
    ],
)
def test_times_have_three_digits_and_no_exponent(seconds: float | None, text: str) -> None:
    assert formats.milliseconds(seconds) == text
