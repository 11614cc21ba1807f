"""Prompts, text that appears piece by piece, and the files beside a tokenizer."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patch_compile.errors import ModelError, RecipeError
from patch_compile.runtimes.text_codec import Spelling, TextCodec, open_codec
from tests.decoders import bytes_tokenizer, tokenizer
from tests.support import said


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> TextCodec:
    return open_codec(bytes_tokenizer(tmp_path_factory.mktemp("bytes")))


@given(st.text(max_size=12), st.text(min_size=1, max_size=12))
def test_pieces_make_up_the_text_and_none_is_broken(
    codec: TextCodec, prompt: str, text: str
) -> None:
    asked = codec.tokenizer.encode(prompt).ids
    spelling = Spelling(codec.decode, asked)
    pieces = [spelling.add(token) for token in codec.tokenizer.encode(text).ids]
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) + spelling.end() == spelling.text == text


@given(st.lists(st.integers(0, 255), max_size=24))
def test_any_bytes_are_shown_in_the_end(codec: TextCodec, tokens: list[int]) -> None:
    spelling = Spelling(codec.decode, [])
    pieces = [spelling.add(token) for token in tokens]
    assert "".join(pieces) + spelling.end() == codec.decode(tokens)


def test_a_character_of_several_tokens_waits_for_the_last(codec: TextCodec) -> None:
    spelling = Spelling(codec.decode, codec.encode("a", chat=False))
    pieces = [spelling.add(token) for token in codec.encode("€!", chat=False)]
    assert pieces == ["", "", "€", "!"]


@pytest.mark.parametrize("name", ["config", "generation_config", "tokenizer_config"])
@pytest.mark.parametrize("text", ['{"bos_token": "\\ud800"}', "[" * 900 + "]" * 900, "[]"])
def test_damaged_file_beside_a_tokenizer_is_told(tmp_path: Path, name: str, text: str) -> None:
    folder = tokenizer(tmp_path)
    (folder / f"{name}.json").write_text(text, "utf-8")
    with pytest.raises(ModelError, match=rf"{name}\.json' \| .*; restore it"):
        open_codec(folder)


@pytest.mark.parametrize("chat", [True, False])
def test_prompt_that_is_no_text_is_refused(codec: TextCodec, chat: bool) -> None:
    with pytest.raises(RecipeError, match="is not UTF-8"):
        codec.encode("a \udcff", chat=chat)


def test_a_folder_or_its_file_may_be_given(tmp_path: Path) -> None:
    folder = tokenizer(tmp_path, max_position_embeddings=9)
    for place in (folder, folder / "tokenizer.json"):
        codec = open_codec(place)
        assert codec.encode("w3 w4", chat=False) == [3, 4]
        assert codec.decode([3, 4]) == "w3 w4"
        assert codec.longest == 9


def written(folder: Path, **files: Any) -> TextCodec:
    for name, facts in files.items():
        (folder / f"{name}.json").write_text(json.dumps(facts), "utf-8")
    return open_codec(folder)


@pytest.mark.parametrize(
    ("config", "generation", "ends"),
    [
        ({}, {}, set()),
        ({"eos_token_id": 2}, {}, {2}),
        ({"eos_token_id": [2, 3]}, {}, {2, 3}),
        ({"eos_token_id": 2}, {"eos_token_id": [4, 5]}, {4, 5}),
        ({"eos_token_id": None}, {"eos_token_id": 6}, {6}),
    ],
)
def test_what_ends_a_text(
    tmp_path: Path, config: Any, generation: Any, ends: set[int]
) -> None:
    folder = tokenizer(tmp_path)
    assert written(folder, config=config, generation_config=generation).ends == ends


def test_prompt_without_tokens_is_refused(codec: TextCodec) -> None:
    with pytest.raises(RecipeError) as caught:
        codec.encode("", chat=False)
    assert said(caught) == "prompt '' | has no tokens; give some text"


# Chat templates.

TEMPLATE = """{% for message in messages %}{{ eos_token }} {{ message.content }}
{% endfor %}{% if add_generation_prompt %}w1{% endif %}"""


@pytest.mark.parametrize("place", ["file", "config", "list"])
def test_chat_template_is_filled_in(tmp_path: Path, place: str) -> None:
    folder = tokenizer(tmp_path)
    words: dict[str, Any] = {"eos_token": {"content": "w9"}}
    if place == "file":
        (folder / "chat_template.jinja").write_text(TEMPLATE, "utf-8")
    elif place == "config":
        words["chat_template"] = TEMPLATE
    else:
        other = {"name": "tool_use", "template": "w0"}
        words["chat_template"] = [other, {"name": "default", "template": TEMPLATE}]
    codec = written(folder, tokenizer_config=words)
    assert codec.encode("w3 w4", chat=True) == [9, 3, 4, 1]
    assert codec.encode("w3 w4", chat=False) == [3, 4]


def test_missing_chat_template_is_told(tmp_path: Path) -> None:
    codec = open_codec(tokenizer(tmp_path))
    with pytest.raises(ModelError, match="has no chat template") as caught:
        codec.encode("w3", chat=True)
    said(caught)


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('roles must\nalternate') }}",
        "{% for x in %}",
        "{{ messages + 1 }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{% include '/etc/passwd' %}",
        "{{ range(10**9) | list }}",
    ],
)
def test_chat_template_that_fails_or_reaches_out_is_stopped(
    tmp_path: Path, template: str
) -> None:
    codec = written(tokenizer(tmp_path), tokenizer_config={"chat_template": template})
    with pytest.raises(ModelError, match="has a chat template that fails") as caught:
        codec.encode("w3", chat=True)
    said(caught)


# Damaged files.


@pytest.mark.parametrize("content", ["{", "[1]", "\udc80", "[" * 100_000])
@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer_config.json"]
)
def test_damaged_configuration_is_told(tmp_path: Path, name: str, content: str) -> None:
    folder = tokenizer(tmp_path)
    (folder / name).write_text(content, "utf-8", errors="surrogateescape")
    with pytest.raises(ModelError, match=name) as caught:
        open_codec(folder)
    said(caught)


def test_missing_tokenizer_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"tokenizer\.json' \| is not a file") as caught:
        open_codec(tmp_path)
    said(caught)
