"""Every input gets a value of its own shape and type, guessed from its name."""

from pathlib import Path

import numpy as np
import pytest

from patch_compile.errors import ModelError
from patch_compile.runtimes.inputs import random_inputs, token_inputs
from patch_compile.runtimes.onnxruntime import open_session, run_session
from tests.runtimes.fakes import FakeArgument, FakeSession
from tests.support import Linear, linear_model, random_weight

INTEGER = "tensor(int64)"
# As torch's exporter names a cache: one symbol a layer.
DECODER = FakeSession(
    (
        FakeArgument("input_ids", ("batch", "sequence"), INTEGER),
        FakeArgument("attention_mask", ("batch", "past_sequence + sequence"), INTEGER),
        FakeArgument("position_ids", ("batch", "sequence"), INTEGER),
        FakeArgument("past_key_values.0.key", ("batch", 3, "s10", 16), "tensor(float16)"),
        FakeArgument("past_key_values.1.key", ("batch", 3, "past_length", 16)),
    )
)


def test_decoder_inputs_start_with_an_empty_cache() -> None:
    feeds = random_inputs(DECODER, batch=2, sequence=5)
    assert feeds["input_ids"].shape == (2, 5)
    assert (feeds["input_ids"].min(), feeds["input_ids"].max()) >= (0, 1)
    assert feeds["input_ids"].max() < 100
    np.testing.assert_array_equal(feeds["attention_mask"], np.ones((2, 5), np.int64))
    np.testing.assert_array_equal(feeds["position_ids"], [[0, 1, 2, 3, 4]] * 2)
    assert feeds["past_key_values.0.key"].shape == (2, 3, 0, 16)
    assert feeds["past_key_values.0.key"].dtype == np.float16
    assert feeds["past_key_values.1.key"].shape == (2, 3, 0, 16)


def test_fixed_sizes_are_kept_and_nameless_ones_guessed() -> None:
    arguments = (FakeArgument("x", (None, 7, None)), FakeArgument("y", ("seq", 4)))
    feeds = random_inputs(FakeSession(arguments), batch=2, sequence=3)
    assert feeds["x"].shape == (2, 7, 3)
    assert feeds["y"].shape == (3, 4)


def test_a_symbol_has_one_size_everywhere() -> None:
    arguments = (FakeArgument("a", ("n", 4)), FakeArgument("b", (4, "n")))
    feeds = random_inputs(FakeSession(arguments), batch=2, sequence=3)
    assert feeds["a"].shape == (2, 4)
    assert feeds["b"].shape == (4, 2)


def test_seed_decides_the_values() -> None:
    session = FakeSession((FakeArgument("x", (50,)),))
    first, again = (random_inputs(session, seed=1)["x"] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, random_inputs(session, seed=2)["x"])
    # Of 50 standard normal numbers: deviation 0.14 of the mean, 0.1 of the spread.
    assert abs(first.mean()) < 0.6
    assert 0.6 < first.std() < 1.4


@pytest.mark.parametrize("kind", ["tensor(bfloat16)", "seq(tensor(float))", "tensor(string)"])
def test_types_that_numpy_lacks_are_refused(kind: str) -> None:
    with pytest.raises(ModelError, match=r"input 'x' \| is .*expected one of"):
        random_inputs(FakeSession((FakeArgument("x", (1,), kind),)))


def test_tokens_reach_a_decoder() -> None:
    tokens = np.array([[5, 200, 7]])
    feeds = token_inputs(DECODER, tokens)
    assert list(feeds) == [a.name for a in DECODER.inputs]
    np.testing.assert_array_equal(feeds["input_ids"], tokens)
    np.testing.assert_array_equal(feeds["position_ids"], [[0, 1, 2]])


def test_tokens_take_the_type_of_the_input() -> None:
    session = FakeSession((FakeArgument("input_ids", (1, "s"), "tensor(int32)"),))
    assert token_inputs(session, np.array([[5]]))["input_ids"].dtype == np.int32


@pytest.mark.parametrize("names", [("x",), ("input_ids", "pixels")])
def test_other_inputs_are_no_language_model(names: tuple[str, ...]) -> None:
    session = FakeSession(tuple(FakeArgument(name, (1, "s"), INTEGER) for name in names))
    with pytest.raises(ModelError, match=r"model inputs \| are .*expected input_ids"):
        token_inputs(session, np.array([[5]]))


def test_inputs_of_a_real_model_run(tmp_path: Path, rng: np.random.Generator) -> None:
    linear_model([Linear("a", random_weight(rng, 6, 8))], tmp_path / "m.onnx")
    session = open_session(tmp_path / "m.onnx")
    feeds = random_inputs(session, batch=2, sequence=3)
    assert run_session(session, feeds)["y_a"].shape == (2, 3, 6)
