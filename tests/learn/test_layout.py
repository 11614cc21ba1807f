"""Ties bind what the model itself binds: found out by disturbing weights and running it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray

from patch_compile.compiler import compile_model
from patch_compile.errors import ModelError, RecipeError
from patch_compile.learn.export import export_onnx
from patch_compile.learn.layout import Layout, layout
from patch_compile.learn.linears import Linear, prunable
from patch_compile.learn.model import LoadedModel
from patch_compile.recipe import CompileRecipe, ExportRecipe, LearnRecipe
from patch_compile.tiles.masks import Masks
from tests.learn.tiny import one_shot, random_ids, tiny_model, tiny_tokenizer
from tests.support import run_ort, said

KINDS = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gpt2", "opt")
TIES: dict[str, Any] = {"tie": ("mlp", "heads"), "tie_block": 64, "tile": "32x32"}
# Key-value heads of the tiny models; GPT-2 and OPT know no groups.
GROUPS = {kind: 4 if kind in ("gpt2", "opt") else 2 for kind in KINDS}


def _layouts(
    model: LoadedModel, **options: Any
) -> tuple[dict[str, Linear], dict[str, Layout]]:
    recipe = LearnRecipe(**{**TIES, **options})
    linears = prunable(model.module, recipe.include, recipe.ignore)
    return linears, layout(model.module, linears, recipe)


def _ties(cut: Layout) -> NDArray[np.int32]:
    assert cut.ties is not None
    return cut.ties


def _columns(layouts: Mapping[str, Layout]) -> dict[str, Layout]:
    """The weights that sum over a tied axis: down and o, by whatever name."""
    return {name: cut for name, cut in layouts.items() if _ties(cut).shape[0] == 1}


def _input(model: LoadedModel, linear: Linear) -> torch.Tensor:
    """The input of a layer, (tokens, K)."""
    seen: list[torch.Tensor] = []
    handle = linear.module.register_forward_hook(
        lambda _module, inputs, _output: seen.append(inputs[0].flatten(0, -2))
    )
    with torch.no_grad():
        model.module(input_ids=random_ids((4, 16)), use_cache=False)
    handle.remove()
    return seen[0]


def _disturbed(
    model: LoadedModel, linear: Linear, rows: NDArray[Any], watched: Linear
) -> NDArray[Any]:
    """Which columns of a layer's input change with some rows of another's weight."""
    before = linear.weight.detach().clone()
    first = _input(model, watched)
    changed = np.zeros(watched.shape[1], np.bool_)
    # Both ways: a ReLU that is shut for all tokens stays shut one way.
    for sign in (1.0, -1.0):
        noise = torch.randn(linear.shape, generator=torch.Generator().manual_seed(0))
        noise[torch.from_numpy(~rows)] = 0.0
        with torch.no_grad():
            linear.matrix(linear.weight).add_(noise, alpha=sign)
        changed |= (first - _input(model, watched)).abs().amax(0).numpy() > 0
        with torch.no_grad():
            linear.weight.copy_(before)
    return changed


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_a_tie_reach_the_columns_of_that_tie_and_no_other(kind: str) -> None:
    model = tiny_model(kind, layers=1)
    linears, layouts = _layouts(model)
    assert len(_columns(layouts)) == 2
    for down, summed in _columns(layouts).items():
        numbers = np.unique(_ties(summed))
        made = [n for n, cut in layouts.items() if n != down and numbers[0] in _ties(cut)]
        assert len(made) >= 1
        for name, number in ((n, number) for n in made for number in numbers):
            rows = layouts[name].grid.expand(_ties(layouts[name]) == number)[:, 0]
            columns = summed.grid.expand(_ties(summed) == number)[0]
            found = _disturbed(model, linears[name], rows, linears[down])
            assert np.array_equal(found, columns), (name, number)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_as_many_as_asked_and_heads_as_many_as_there_are(kind: str) -> None:
    model = tiny_model(kind)
    linears, layouts = _layouts(model)
    numbers = {cut.geometry: np.unique(_ties(cut)) for cut in layouts.values()}
    assert set(numbers) == {"mlp:64", "heads"}
    inner = 256 if kind == "gpt2" else 172
    assert len(numbers["mlp:64"]) == -(-inner // 64)
    assert len(numbers["heads"]) == GROUPS[kind]
    for name, cut in layouts.items():
        assert cut.grid.shape == linears[name].shape
        if cut.geometry == "mlp:64":
            edges = cut.grid.columns if _ties(cut).shape[0] == 1 else cut.grid.rows
            assert edges == (0, 64, 128, *([172] if inner == 172 else [192, 256]))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_numbers_are_those_of_one_module_and_consecutive(kind: str) -> None:
    _, layouts = _layouts(tiny_model(kind, layers=3))
    owners: dict[int, set[str]] = {}
    for name, cut in layouts.items():
        numbers = np.unique(_ties(cut))
        assert np.array_equal(numbers, np.arange(numbers[0], numbers[0] + len(numbers)))
        for number in numbers.tolist():
            owners.setdefault(number, set()).add(name.rsplit(".", 2)[0])
    assert all(len(modules) == 1 for modules in owners.values())
    assert sorted(owners) == list(range(3 * (GROUPS[kind] + (4 if kind == "gpt2" else 3))))


def test_weights_in_no_tie_keep_the_recipe_s_tiles() -> None:
    linears, layouts = _layouts(tiny_model(), tie=("mlp",))
    for name, cut in layouts.items():
        if ".mlp." in name:
            assert cut.geometry == "mlp:64"
            continue
        assert (cut.geometry, cut.ties) == ("32x32", None)
        assert cut.grid.tiles == (linears[name].shape[0] // 32, 2)
    assert list(layouts) == list(linears)


def test_module_that_is_left_out_altogether_is_no_error() -> None:
    linears, layouts = _layouts(tiny_model(), ignore=("*.layers.0.mlp.*",))
    assert len(layouts) == len(linears) == 4 + 7


def _refusal(kind: str | LoadedModel, error: type[Exception], **options: Any) -> str:
    model = tiny_model(kind, layers=1) if isinstance(kind, str) else kind
    with pytest.raises(error) as caught:
        _layouts(model, **options)
    return said(caught)


def test_part_of_a_tie_alone_is_refused() -> None:
    assert _refusal("llama", RecipeError, ignore=("*.up_proj.*",)) == (
        "weight 'model.layers.0.mlp.up_proj.weight' | is not to be pruned, and --tie mlp "
        "binds it to others of 'model.layers.0.mlp' that are; include or ignore all 3, or "
        "leave the tie out"
    )
    text = _refusal("opt", RecipeError, include=("*.fc1.*", "*.[qkv]_proj.*"))
    assert text.startswith("weight 'model.decoder.layers.0.fc2.weight' | is not to be pruned")
    text = _refusal("gpt2", RecipeError, tie=("heads",), ignore=("*.c_attn.*",))
    assert "attn.c_attn.weight' | is not to be pruned, and --tie heads binds it" in text


def test_tie_of_nothing_that_is_pruned_is_refused() -> None:
    text = _refusal("llama", RecipeError, tie=("heads",), include=("*.mlp.*",))
    assert text == (
        "tie | is 'heads', and none of the weights it binds is to be pruned, e.g. "
        "'model.layers.0.self_attn.o_proj.weight'; widen --include, narrow --ignore or leave "
        "the tie out"
    )


def test_model_without_what_a_tie_knows_is_refused() -> None:
    config = transformers.GPTNeoXConfig(
        vocab_size=128, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2,
    )  # fmt: skip
    module = transformers.GPTNeoXForCausalLM(config)
    model = LoadedModel(module, tiny_tokenizer(), "neox")
    text = _refusal(model, ModelError, tie=("mlp",))
    assert text.startswith("model | has no 'mlp' that is known among ['gpt_neox.layers.")
    assert "expected linear layers named gate_proj/up_proj/down_proj, or c_fc/c_proj" in text
    assert "in one module; leave 'mlp' out" in text


@pytest.mark.parametrize("block", [0, 2, 6, 66])
def test_block_that_parts_a_group_of_four_is_refused(block: int) -> None:
    text = _refusal("llama", RecipeError, tie_block=block)
    assert text.startswith(f"tie-block | is {block}; expected a multiple of 4")


def _llama(heads: int, groups: int) -> LoadedModel:
    config = transformers.LlamaConfig(
        vocab_size=128, hidden_size=24, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=heads, num_key_value_heads=groups,
    )  # fmt: skip
    return LoadedModel(transformers.LlamaForCausalLM(config), tiny_tokenizer(), "llama")


def test_heads_that_part_a_group_of_four_are_refused() -> None:
    """Two heads of 6 make 12 columns of o_proj; one makes 6."""
    _, layouts = _layouts(_llama(4, 2))
    assert layouts["model.layers.0.self_attn.o_proj.weight"].grid.columns == (0, 12, 24)
    text = _refusal(_llama(4, 4), RecipeError)
    assert "self_attn.o_proj.weight' | has 6 in features for each of 4 key-value heads" in text


@pytest.mark.parametrize(
    ("head", "part"),
    [
        (
            None,
            "o_proj.weight' | belongs to a module whose `head_dim` is None; expected the",
        ),
        (24, "v_proj.weight' | has 32 out features; expected whole heads of 1 x 24"),
    ],
)
def test_module_that_misleads_about_its_heads_is_refused(head: int | None, part: str) -> None:
    model = tiny_model(layers=1)
    attention: Any = model.module.get_submodule("model.layers.0.self_attn")
    attention.head_dim = head
    assert part in _refusal(model, ModelError)


def test_weight_that_does_not_divide_as_the_others_do_is_refused() -> None:
    model = tiny_model(layers=1)
    attention: Any = model.module.get_submodule("model.layers.0.self_attn")
    attention.q_proj = torch.nn.Linear(64, 63)
    text = _refusal(model, ModelError)
    assert "q_proj.weight' | of shape (63, 64) has no 2 blocks of 31, to go with those" in text


def _tied_masks(model: LoadedModel, sparsity: float) -> Masks:
    recipe = LearnRecipe(method="magnitude", select="error", sparsity=(sparsity,), **TIES)
    return one_shot(model, None, recipe)


def _blocks(masks: Masks) -> dict[int, list[tuple[NDArray[np.bool_], float]]]:
    """Of each tie, what its blocks keep and what dropping from them costs."""
    blocks: dict[int, list[tuple[NDArray[np.bool_], float]]] = {}
    for mask in masks.weights.values():
        assert mask.ties is not None
        assert mask.scores is not None
        rows, columns = mask.grid.rows, mask.grid.columns
        for (r, c), number in np.ndenumerate(mask.ties):
            kept = mask.keep()[rows[r] : rows[r + 1], columns[c] : columns[c + 1]]
            blocks.setdefault(int(number), []).append((kept, float(mask.scores[r, c])))
    return blocks


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sparsity", [0.1, 0.3])
def test_members_of_a_tie_share_one_choice_and_the_cheapest_go(
    kind: str, sparsity: float
) -> None:
    model = tiny_model(kind)
    blocks = _blocks(_tied_masks(model, sparsity))
    prices: dict[bool, list[float]] = {True: [], False: []}
    for members in blocks.values():
        dense = {bool(kept.all()) for kept, _ in members}
        assert len(dense) == 1
        size = sum(kept.size for kept, _ in members)
        prices[dense.pop()].append(sum(score for _, score in members) / size)
    assert prices[True]
    assert prices[False]
    assert max(prices[False]) <= min(prices[True])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.25, 0.4, 0.5])
def test_budget_is_met_to_within_half_a_tie(kind: str, sparsity: float) -> None:
    masks = _tied_masks(tiny_model(kind), sparsity)
    blocks = _blocks(masks).values()
    weights = sum(kept.size for members in blocks for kept, _ in members)
    zeros = sum(int((~kept).sum()) for members in blocks for kept, _ in members)
    # A tie of that many weights has half as many zeros.
    largest = max(sum(kept.size for kept, _ in members) for members in blocks) / 2
    assert abs(zeros - sparsity * weights) <= largest / 2
    assert masks.made_by["sparsity"] == zeros / weights


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_compiled_graph_of_tied_masks_equals_the_masked_model(
    kind: str, tmp_path: Path
) -> None:
    model = tiny_model(kind, layers=1)
    masks = _tied_masks(model, 0.25)
    path = export_onnx(model, tmp_path / "model.onnx", ExportRecipe())
    compiled = compile_model(path, masks, CompileRecipe(min_gain=0.0))
    forms = {weight.masks[0]: weight.lowering for weight in compiled.report.weights}
    mixed = {
        name: mask for name, mask in masks.weights.items() if len(set(mask.dense.flat)) == 2
    }
    assert len(mixed) > 1
    for name, mask in mixed.items():
        alone = "reduction" if mask.dense.shape[0] == 1 else "columns"
        # Whole MLPs become branches.
        assert forms[name] in (alone, "branches")
    ids = random_ids((2, 12))
    with torch.no_grad():
        for name, linear in prunable(model.module).items():
            linear.matrix(linear.weight).mul_(torch.from_numpy(masks.weights[name].keep()))
        expected_logits = model.module(input_ids=ids).logits.numpy()
    out = compiled.save(tmp_path / "out")
    found = run_ort(out, {"input_ids": ids.numpy()}, optimise=False)["logits"]
    # As of any export, the sums of the parts in another order included; 4e-7 was seen.
    np.testing.assert_allclose(found, expected_logits, rtol=0, atol=1e-4)
