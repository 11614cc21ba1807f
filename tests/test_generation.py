"""Prompts through several decoders: texts, where they part, what is refused."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from patch_compile.errors import ModelError, PatchCompileError, RecipeError
from patch_compile.generation import Difference, Generated, generate
from patch_compile.recipe import GenerateRecipe
from tests.decoders import VOCABULARY, bigram, running, table, tokenizer
from tests.support import said

SHORT = GenerateRecipe(max_new_tokens=4)


def chain(*tokens: int) -> Any:
    """Rows by which each token is followed by the next of these."""
    rows = np.zeros((VOCABULARY, VOCABULARY), np.float32)
    for token, following in pairwise(tokens):
        rows[token, following] = 9.0
    return rows


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tokenizer(tmp_path, max_position_embeddings=20, eos_token_id=11)


def ran(home: Path, *rows: Any, **options: Any) -> Generated:
    """Models with these rows go on from `w1`."""
    models = [bigram(home / f"m{i}.onnx", each) for i, each in enumerate(rows)]
    recipe = GenerateRecipe(**{"max_new_tokens": 6, **options})
    return generate(models, ["w1"], recipe)


def test_text_ends_at_its_end_or_at_the_length_asked_for(home: Path) -> None:
    found = ran(home, chain(1, 2, 3, 11), chain(1, 2, 3, 4, 1))
    ended, cut = found.prompts[0].answers
    assert (ended.text, ended.tokens, ended.stopped) == (" w2 w3", (2, 3), "end")
    assert (cut.text, cut.tokens) == (" w2 w3 w4 w1 w2 w3", (2, 3, 4, 1, 2, 3))
    assert cut.stopped == "length"
    # The token that ends a text was read for and chosen too.
    assert (ended.later, cut.later) == (2, 5)


def test_end_may_be_ignored(home: Path) -> None:
    (answer,) = ran(home, chain(1, 2, 11, 1), ignore_end=True).prompts[0].answers
    assert answer.tokens == (2, 11, 1, 2, 11, 1)


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (chain(1, 2, 3, 4, 1), None),
        (chain(1, 2, 3, 5, 1), Difference(2, "w4", "w5")),
        (chain(1, 7, 8, 9, 1), Difference(0, "w2", "w7")),
        (chain(1, 2, 11), Difference(1, "w3", "")),
    ],
)
def test_first_difference_is_found(
    home: Path, other: Any, difference: Difference | None
) -> None:
    first, second = ran(home, chain(1, 2, 3, 4, 1), other).prompts[0].answers
    assert first.difference is None
    assert second.difference == difference


def test_difference_from_a_text_that_was_over(home: Path) -> None:
    _, second = ran(home, chain(1, 2, 11), chain(1, 2, 3, 1)).prompts[0].answers
    assert second.difference == Difference(1, "", "w3")


def test_equal_models_draw_equal_texts(home: Path) -> None:
    rows = table()
    found = ran(home, rows, rows, temperature=1.0, ignore_end=True, seed=3)
    one, two = found.prompts[0].answers
    assert one.tokens == two.tokens
    assert two.difference is None
    other = ran(home, rows, temperature=1.0, ignore_end=True, seed=4)
    assert other.prompts[0].answers[0].tokens != one.tokens


def test_an_answer_does_not_depend_on_the_prompts_after(home: Path) -> None:
    model = bigram(home / "m.onnx")
    recipe = GenerateRecipe(max_new_tokens=6, temperature=1.0, ignore_end=True)
    alone, both = (generate([model], prompts, recipe) for prompts in (["w1"], ["w1", "w2 w3"]))
    assert both.prompts[0].answers[0].tokens == alone.prompts[0].answers[0].tokens


def test_pieces_arrive_where_they_belong(home: Path) -> None:
    models = [running(home / "a.onnx"), running(home / "b.onnx", seed=1)]
    heard: dict[tuple[int, int], str] = {}

    def listen(prompt: int, model: int, piece: str) -> None:
        heard[prompt, model] = heard.get((prompt, model), "") + piece

    recipe = GenerateRecipe(max_new_tokens=4, ignore_end=True)
    found = generate(models, ["w1 w2", "w5"], recipe, listen=listen)
    assert heard == {
        (i, j): answer.text
        for i, asked in enumerate(found.prompts)
        for j, answer in enumerate(asked.answers)
    }
    assert found.cached == {"a.onnx": True, "b.onnx": True}
    assert [asked.tokens for asked in found.prompts] == [(1, 2), (5,)]


def test_json_is_complete(home: Path) -> None:
    found = ran(home, chain(1, 2, 3, 1), chain(1, 2, 4, 1), top_k=1)
    facts = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert facts["version"] == 1
    assert facts["models"] == [
        {"model": "m0.onnx", "cache": False},
        {"model": "m1.onnx", "cache": False},
    ]
    assert facts["recipe"]["top_k"] == 1
    (asked,) = facts["prompts"]
    assert (asked["prompt"], asked["tokens"]) == ("w1", [1])
    first, second = asked["answers"]
    assert second["difference"] == {"at": 1, "first": "w3", "here": "w4"}
    assert first["tokens"] == [2, 3, 1, 2, 3, 1]
    assert first["tokens_per_second"] == pytest.approx(5 / first["seconds"])
    assert first["prompt_seconds"] > 0


def test_one_token_has_no_rate(home: Path) -> None:
    (answer,) = ran(home, chain(1, 2), max_new_tokens=1).prompts[0].answers
    assert answer.tokens_per_second is None


def test_models_are_told_apart(home: Path) -> None:
    one, two = bigram(home / "x" / "m.onnx"), bigram(home / "y" / "m.onnx")
    found = generate([one, two, one], ["w1"], GenerateRecipe(max_new_tokens=1), tokenizer=home)
    assert list(found.cached) == ["x/m.onnx", "y/m.onnx", "x/m.onnx (2)"]


# What is refused.


def refusal(kind: type[PatchCompileError], *arguments: Any, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        generate(*arguments, **options)
    return said(caught)


def test_prompt_and_answer_must_fit_the_model(home: Path) -> None:
    model = bigram(home / "m.onnx")
    recipe = GenerateRecipe(max_new_tokens=20)
    assert refusal(RecipeError, [model], ["w1 w2"], recipe) == (
        "prompt | has 2 tokens, and up to 20 are to follow; the model takes 20 "
        "(config.json); ask for fewer (--max-new-tokens)"
    )
    assert len(generate([model], ["w1"], recipe).prompts) == 1


def test_tokenizer_of_a_larger_vocabulary_is_refused(home: Path) -> None:
    model = bigram(home / "m.onnx", np.zeros((5, 5), np.float32))
    assert refusal(ModelError, [model], ["w3 w7"], SHORT) == (
        f"model '{model}' | knows 5 tokens, and the prompt has token 7; give the tokenizer of "
        "this model (--tokenizer)"
    )


@pytest.mark.parametrize(("models", "prompts"), [([], ["w1"]), (["m.onnx"], [])])
def test_nothing_to_do_is_refused(models: list[str], prompts: list[str]) -> None:
    assert "has no model or no prompt" in refusal(RecipeError, models, prompts)


def test_missing_model_or_tokenizer_is_refused(home: Path, tmp_path: Path) -> None:
    assert "is not a file" in refusal(ModelError, [home / "none.onnx"], ["w1"], SHORT)
    path = bigram(tmp_path / "elsewhere" / "m.onnx")
    assert "tokenizer.json' | is not a file" in refusal(ModelError, [path], ["w1"])


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"max_new_tokens": 0}, "max-new-tokens"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": 0}, "top-k"),
        ({"top_p": 0.0}, "top-p"),
        ({"top_p": 1.5}, "top-p"),
        ({"seed": -1}, "seed"),
        ({"greedy": True, "top_k": 3}, "greedy"),
    ],
)
def test_recipe_holds_only_what_it_can_mean(options: Any, field: str) -> None:
    with pytest.raises(RecipeError) as caught:
        GenerateRecipe(**options)
    assert said(caught).startswith(f"{field} | ")
