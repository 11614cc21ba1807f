"""Gates go into a model and leave no trace."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from patch_compile.errors import RecipeError
from patch_compile.learn.linears import find_linears, prunable
from patch_compile.learn.training.gate import Gate, Moment
from patch_compile.learn.training.masked import gated, recomputed
from patch_compile.learn.training.patterns import FixedPattern
from patch_compile.learn.training.schedule import Annealed
from patch_compile.tiles.geometry import Geometry
from tests.learn.tiny import random_ids, tiny_model

KINDS = ["llama", "qwen2", "qwen3", "mistral", "gemma", "gpt2", "opt"]


class _Stopped(Exception):
    pass


def _gates(linears: Any) -> dict[str, Gate]:
    moment = Moment(Annealed(1.0, 1.0), Annealed(1.0, 1.0))
    gates = {}
    for name, linear in linears.items():
        grid = Geometry.parse("16x16").grid(linear.shape)
        pattern = FixedPattern()
        stored = pattern.start(torch.from_numpy(linear.array()).abs(), torch.Generator())
        # Every other tile is 2:4, and hard.
        tiles = torch.arange(grid.areas.size).view(grid.tiles) % 2
        gates[name] = Gate(
            name, grid, pattern, moment, tiles=tiles.float(), stored=stored, dense=tiles > 0
        )
    return gates


def _traces(module: Any) -> Any:
    names = [name for name, _ in module.named_modules()]
    learning = [parameter.requires_grad for parameter in module.parameters()]
    training = [child.training for child in module.modules()]
    own = [sorted(vars(child)) for child in module.modules()]
    return names, learning, training, own


@pytest.mark.parametrize("kind", KINDS)
def test_a_gated_model_is_the_model_with_its_weights_masked(kind: str) -> None:
    model = tiny_model(kind).module
    linears = prunable(model, (), ())
    gates = _gates(linears)
    ids = random_ids((2, 12))
    with torch.no_grad(), gated(model, linears, gates):
        found = model(input_ids=ids).logits
    with torch.no_grad():
        for name, linear in linears.items():
            gate = gates[name]
            assert gate.dense is not None
            whole = torch.from_numpy(gate.grid.expand(gate.dense.numpy()))
            linear.matrix(linear.weight).mul_(whole | gate.stored)
        expected = model(input_ids=ids).logits
    # The same products of the same numbers.
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def _stop_within(model: Any) -> None:
    with recomputed(model):
        assert any("forward" in vars(module) for module in model.modules())
        raise _Stopped


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_as_it_was_after_an_exception(kind: str) -> None:
    model = tiny_model(kind).module.eval()
    next(iter(model.parameters())).requires_grad_(False)
    linears = prunable(model, (), ())
    before = _traces(model)
    weights = {name: linear.weight.clone() for name, linear in linears.items()}
    with (
        pytest.raises(_Stopped),
        gated(model, linears, _gates(linears), dtype=torch.bfloat16),
    ):
        _stop_within(model)
    assert _traces(model) == before
    for name, linear in find_linears(model).items():
        if name in weights:
            assert torch.equal(linear.weight, weights[name])


def test_frozen_weights_wait_in_the_type_that_autocast_computes_in() -> None:
    model = tiny_model("llama").module.eval()
    linears = prunable(model, (), ())
    ids = random_ids((2, 12))
    with torch.no_grad(), gated(model, linears, {}, dtype=torch.bfloat16):
        kept = {linear.module.weight.dtype for linear in find_linears(model).values()}
        embedded = model.get_input_embeddings()(ids)
        with torch.autocast("cpu", torch.bfloat16):
            found = model(input_ids=ids).logits
    assert kept == {torch.bfloat16}
    # Of a tied head, too: the residual stream starts in full.
    assert embedded.dtype == torch.float32
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(found, model(input_ids=ids).logits)


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_dropouts_stay_off_while_blocks_recompute(kind: str) -> None:
    model = tiny_model(kind).module.eval()
    ids = random_ids((2, 12))
    rates = [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)]
    dropout = max(rates, default=0.0) or model.config.dropout
    assert dropout > 0
    plain = model(input_ids=ids, use_cache=False).logits
    with recomputed(model):
        again = model(input_ids=ids, use_cache=False).logits
    assert torch.equal(plain, again)


def test_blocks_run_again_in_the_backward_pass() -> None:
    model = tiny_model(layers=2).module.eval()
    calls: list[str] = []
    for name, module in model.named_modules():
        if name.endswith("q_proj"):
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    grads = []
    for context in (nullcontext(), recomputed(model)):
        with context:
            model.zero_grad()
            model(input_ids=random_ids((2, 12)), use_cache=False).logits.sum().backward()
        grads.append([parameter.grad for parameter in model.parameters()])
    assert len(calls) == 2 + 4
    assert all(torch.equal(one, other) for one, other in zip(*grads, strict=True))


def test_a_model_without_blocks_cannot_recompute() -> None:
    with pytest.raises(RecipeError, match=r"recompute . Linear has no blocks"):
        recomputed(torch.nn.Linear(2, 2)).__enter__()  # type: ignore[arg-type] # of no library
