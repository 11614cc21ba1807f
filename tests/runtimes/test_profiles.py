"""Profiles give axis 0 the batch range, other axes the sequence range, symbols one range."""

from patch_compile.runtimes.profiles import NetworkInput, profile_shapes

BATCH, SEQUENCE = (1, 4, 16), (2, 512, 2048)


def _shapes(*inputs: NetworkInput) -> dict[str, tuple[tuple[int, ...], ...]]:
    return profile_shapes(inputs, BATCH, SEQUENCE)


def test_first_axis_is_the_batch_and_others_the_sequence() -> None:
    ids = NetworkInput("ids", (-1, -1), ("batch", "sequence"))
    assert _shapes(ids) == {"ids": ((1, 2), (4, 512), (16, 2048))}


def test_fixed_axes_stay_and_fixed_inputs_need_no_profile() -> None:
    cache = NetworkInput("cache", (-1, 3, -1, 64), (None, None, None, None))
    fixed = NetworkInput("fixed", (1, 3), (None, None))
    assert _shapes(fixed, cache) == {
        "cache": ((1, 3, 2, 64), (4, 3, 512, 64), (16, 3, 2048, 64))
    }


def test_a_symbol_keeps_its_first_range() -> None:
    first = NetworkInput("first", (-1, -1), ("n", "m"))
    second = NetworkInput("second", (-1, -1), ("m", "n"))
    assert _shapes(first, second)["second"] == ((2, 1), (512, 4), (2048, 16))


def test_nameless_axes_share_nothing() -> None:
    first = NetworkInput("first", (-1,), (None,))
    second = NetworkInput("second", (8, -1), (None, None))
    assert _shapes(first, second)["second"] == ((8, 2), (8, 512), (8, 2048))
