"""The command lines on the page make the same again: the parser reads back what was asked."""

import shlex
from dataclasses import asdict
from typing import Any

import pytest

from patch_compile.cli.arguments import split_lists
from patch_compile.cli.main import app
from patch_compile.page.commands import commands
from patch_compile.recipe import BuildRecipe, CompileRecipe, LearnRecipe, QuantizeRecipe

MADE_BY = {"model": "M", "data": ["a.txt", "b.txt"], "sparsity": 0.25}


def _report(**facts: Any) -> dict[str, Any]:
    names = {"model": "m.onnx", "masks": facts.pop("masks", "masks.json")}
    base = {"made_by": {}, "recipe": asdict(CompileRecipe()), "engines": [], "inputs": names}
    return {**base, **facts}


def _parsed(line: str) -> dict[str, Any]:
    words = shlex.split(line)
    assert words[0] == "patch-compile"
    _, bound, _ = app.parse_args(
        split_lists(words[1:]), exit_on_error=False, print_error=False
    )
    bound.apply_defaults()
    return dict(bound.arguments)


def _learned(recipe: LearnRecipe, **facts: Any) -> dict[str, Any]:
    return {**MADE_BY, "recipe": asdict(recipe), **facts}


@pytest.mark.parametrize(
    "recipe",
    [
        CompileRecipe(),
        CompileRecipe(ignore=(r"re:^a\.", r"re:^b{1,2}\.", "c.*"), lowering="columns"),
        CompileRecipe(target="a100-bf16", tokens=("16:0.9", "2048:0.1"), check_digests=False),
    ],
)
def test_a_compile_is_asked_as_it_was(recipe: CompileRecipe) -> None:
    line, _ = commands(_report(recipe=asdict(recipe)))
    found = _parsed(line)
    assert found["recipe"] == recipe
    assert (str(found["model"]), found["tiles"]) == ("m.onnx", "masks.json")


def test_a_quantised_compile_says_so() -> None:
    recipe = QuantizeRecipe(quantize="int8", quantize_ignore=("lm_head",), quantize_error=0.2)
    quantized = {"type": "int8", "recipe": asdict(recipe), "data": "calibration.txt"}
    found = _parsed(commands(_report(quantized=quantized))[0])
    assert (found["quantizer"], str(found["data"])) == (recipe, "calibration.txt")


@pytest.mark.parametrize(
    "recipe",
    [
        BuildRecipe(engine="trtexec", flags=("--tacticSources=-CUDNN,+CUBLAS", "--device=1")),
        BuildRecipe(engine="tensorrt_rtx", sm=(86, 89), batch=(1, 4, 8), sparse=False),
    ],
)
def test_an_engine_is_asked_as_it_was(recipe: BuildRecipe) -> None:
    engine = {"sm": [86], "requested": True, "recipe": asdict(recipe)}
    line = commands(_report(engines=[engine]))[1]
    assert _parsed(line)["recipe"] == recipe


def test_learning_is_asked_as_it_was() -> None:
    recipe = LearnRecipe(method="topk-ste", sparsity=(0.25,), include=("*.mlp.*", "re:q|k"))
    line, *_ = commands(_report(made_by=_learned(recipe)))
    found = _parsed(line)
    assert found["recipe"] == recipe
    assert (found["model"], found["data"], str(found["output"])) == (
        "M",
        ("a.txt", "b.txt"),
        "masks.json",
    )


def test_masks_of_one_of_several_sparsities_get_their_name() -> None:
    recipe = LearnRecipe(sparsity=(0.25, 0.4))
    made_by = _learned(recipe, sparsity=0.3999)
    line, _, _ = commands(_report(made_by=made_by, masks="learned-0.4.json"))
    assert str(_parsed(line)["output"]) == "learned.json"


@pytest.mark.parametrize(
    ("facts", "options"),
    [
        ({"sparsity": 0.3}, ["--sparsity", "0.3"]),
        (
            {"budget": {"asked": 1.1, "target": "a100-bf16", "tokens": ["16", "2048"]}},
            ["--budget", "time:1.1x@a100-bf16:16,2048"],
        ),
    ],
)
def test_masks_that_were_cut_are_learned_and_cut(
    facts: dict[str, Any], options: list[str]
) -> None:
    made_by = _learned(LearnRecipe(sparsity=(0.25, 0.4)), **facts)
    learn, cut, _, _ = commands(_report(made_by=made_by))
    assert str(_parsed(learn)["output"]) == "learned.json"
    assert shlex.split(cut)[1:] == ["cut", "learned-0.4.json", *options, "-o", "masks.json"]
    _parsed(cut)


def test_a_budget_of_time_is_no_cut() -> None:
    recipe = LearnRecipe(budget="time:1.1x@a100-bf16:16")
    told = {"asked": 1.1, "target": "a100-bf16", "tokens": ["16"]}
    learn, _, _ = commands(_report(made_by=_learned(recipe, sparsity=0.41, budget=told)))
    assert _parsed(learn)["recipe"] == recipe


def test_a_budget_of_the_compile_is_none_of_the_masks() -> None:
    own = {"saved": 0.1, "loss": 0.2, "gap": 0.0}
    recipe = LearnRecipe(sparsity=(0.25,))
    learn, _, _ = commands(_report(made_by=_learned(recipe, budget=own)))
    assert str(_parsed(learn)["output"]) == "masks.json"


def test_new_weights_need_a_folder() -> None:
    recipe = LearnRecipe(method="sparsegpt", update=True, sparsity=(0.25,))
    line, *_ = commands(_report(made_by=_learned(recipe)))
    assert str(_parsed(line)["checkpoint"]) == "CHECKPOINT"
