"""A decoder gives the same logits however its text is read, or says why it is none."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patch_compile.errors import ModelError
from patch_compile.recipe import GenerateRecipe
from patch_compile.runtimes.decoding import Decoder, continued, open_decoder
from patch_compile.runtimes.free_axes import implied_sizes
from tests.decoders import PAST, PRESENT, VOCABULARY, bigram, encoder, running, table
from tests.passes.genai import HEAD, genai_model
from tests.support import said

TEXT = [3, 1, 4, 1, 5, 9, 2, 6]


@pytest.fixture(scope="module", params=["running", "bigram", "genai"])
def decoder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Decoder:
    path = tmp_path_factory.mktemp("decoder") / "model.onnx"
    if request.param == "genai":
        genai_model(path, np.random.default_rng(0))
    else:
        {"running": running, "bigram": bigram}[request.param](path)
    return open_decoder(path)


@settings(max_examples=15)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=6))
def test_parts_give_what_the_whole_gives(decoder: Decoder, parts: list[int]) -> None:
    tokens = (TEXT * 3)[: sum(parts)]
    reader, done = decoder.reader(), 0
    found = []
    for part in parts:
        found.append(reader.read(tokens[done : done + part]))
        done += part
    # Sums of up to 96 products, in other blocks.
    np.testing.assert_allclose(found[-1], decoder.reader().read(tokens), rtol=0, atol=1e-5)


def test_the_cache_is_used_and_the_mask_and_positions_are_right(tmp_path: Path) -> None:
    decoder = open_decoder(running(tmp_path / "m.onnx"))
    assert decoder.cache == {PAST: PRESENT}
    reader = decoder.reader()
    reader.read(TEXT[:3])
    found = reader.read(TEXT[3:5])
    np.testing.assert_allclose(found, table()[TEXT[:5]].sum(axis=0), rtol=0, atol=1e-5)


def test_texts_do_not_see_one_another(decoder: Decoder) -> None:
    one, two = decoder.reader(), decoder.reader()
    first = one.read(TEXT[:3])
    two.read(TEXT[4:])
    one.read(TEXT[3:])
    np.testing.assert_array_equal(decoder.reader().read(TEXT[:3]), first)


def test_tokens_follow_from_the_logits(tmp_path: Path) -> None:
    decoder = open_decoder(bigram(tmp_path / "m.onnx"))
    steps = list(
        continued(
            decoder.reader(), [2], GenerateRecipe(max_new_tokens=5), np.random.default_rng(0)
        )
    )
    expected, token = [], 2
    for _ in range(5):
        token = int(table()[token].argmax())
        expected.append(token)
    assert [step.token for step in steps] == expected
    assert all(step.seconds > 0 for step in steps)
    assert decoder.vocabulary == VOCABULARY


def test_one_number_is_drawn_a_token_whatever_the_model(tmp_path: Path) -> None:
    """So that two models that agree on their logits agree on what is drawn."""
    recipe = GenerateRecipe(max_new_tokens=4, temperature=1.0)
    decoder = open_decoder(bigram(tmp_path / "m.onnx"))
    rng, other = np.random.default_rng(5), np.random.default_rng(5)
    list(continued(decoder.reader(), [2], recipe, rng))
    other.random(4)
    assert rng.random() == other.random()


# The features of a cached head, where the graph has a symbol for them.


def test_genai_heads_have_the_size_that_their_attention_implies(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    genai_model(path, np.random.default_rng(0))
    graph = onnx.load(path).graph
    assert implied_sizes(graph) == {"kv_cache_dim": HEAD}
    shapes = [a.shape for a in open_decoder(path).session.get_inputs() if "past" in a.name]
    assert [shape[-1] for shape in shapes] == [HEAD, HEAD]


@pytest.mark.parametrize("lost", ["kv_num_heads", "shapes", "past"])
def test_a_size_that_the_graph_does_not_imply_is_not_guessed(
    tmp_path: Path, lost: str
) -> None:
    path = tmp_path / "m.onnx"
    genai_model(path, np.random.default_rng(0))
    graph = onnx.load(path).graph
    (node,) = [n for n in graph.node if n.op_type == "GroupQueryAttention"]
    if lost == "kv_num_heads":
        kept = [a for a in node.attribute if a.name == "do_rotary"]
        del node.attribute[:]
        node.attribute.extend(kept)
    elif lost == "shapes":
        del graph.value_info[:]
    else:
        del node.input[3:]
    assert implied_sizes(graph) == {}


# Models that are no decoders.


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        open_decoder(path)
    return said(caught)


def test_encoder_is_refused(tmp_path: Path) -> None:
    text = refusal(encoder(tmp_path / "m.onnx"))
    assert "is no causal language model" in text
    assert "as an encoder's do" in text


def test_cache_of_a_fixed_length_is_refused(tmp_path: Path) -> None:
    text = refusal(running(tmp_path / "m.onnx", past=(1, 8)))
    assert "has a cache of a fixed length" in text
    assert "(1, 8, 12)" in text


def edited(path: Path, change: Any) -> Path:
    model = onnx.load(path)
    change(model.graph)
    onnx.save(model, path)
    return path


def test_cache_that_does_not_come_out_is_refused(tmp_path: Path) -> None:
    path = edited(running(tmp_path / "m.onnx"), lambda graph: graph.output.pop())
    assert f"has the input '{PAST}' and no output '{PRESENT}'" in refusal(path)


def test_unknown_input_is_refused(tmp_path: Path) -> None:
    def rename(graph: onnx.GraphProto) -> None:
        graph.input[0].name = graph.node[0].input[1] = "pixels"

    text = refusal(edited(bigram(tmp_path / "m.onnx"), rename))
    assert "are pixels; expected input_ids" in text


def test_logits_that_overflow_are_refused(tmp_path: Path) -> None:
    rows = table()
    rows[7] = np.nan
    decoder = open_decoder(bigram(tmp_path / "m.onnx", rows))
    with pytest.raises(ModelError, match=re.escape("gives logits up to nan")) as caught:
        decoder.reader().read([7])
    said(caught)


def test_outputs_without_a_vocabulary_are_refused(tmp_path: Path) -> None:
    def cut(graph: onnx.GraphProto) -> None:
        graph.node[-1].output[0] = "all"
        graph.node.append(
            onnx.helper.make_node("ReduceMax", ["all", "one"], ["logits"], keepdims=0)
        )
        del graph.output[0].type.tensor_type.shape.dim[:]

    path = edited(running(tmp_path / "m.onnx"), cut)
    assert "gives 'logits' of shape (1, 12); expected logits" in refusal(path)
