"""Frozen weights spread over two processes: the same result, each with half of them."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn
from torch.distributed.tensor import DTensor

from patch_compile.errors import RecipeError
from patch_compile.learn.model import LoadedModel
from patch_compile.learn.training import learned, train
from patch_compile.learn.training.learned import learn_gates
from patch_compile.learn.training.masked import blocks_of
from patch_compile.learn.training.processes import as_launched
from patch_compile.learn.training.sharding import check_shardable
from patch_compile.learn.training.train import Trainer
from patch_compile.recipe import LearnRecipe
from tests.learn.tiny import short_recipe, tiny_config, tiny_model, tiny_tokenizer, write_text
from tests.learn.training.together import PROCESSES, together

# Model and options of each run; without options of their own: patch-joint, distilled.
CASES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "joint": ("llama", {}),
    "untied": ("untied", {"distill": False}),
    "recomputed": ("llama", {"recompute": True, "accumulate": 2, "batch": 2}),
    "set tiles": ("qwen3", {"method": "topk-ste", "lr": 0.05}),
    "fixed pattern": ("opt", {"method": "patch-tile", "lr": 0.01}),
    "tied tiles": ("llama", {"tie": ("mlp",), "tie_block": 4}),
    "conv": ("gpt2", {"method": "leap"}),
    "encoder": ("bert", {}),
    "some weights": ("gemma", {"include": ("*.mlp.*",)}),
    "bf16 weights": ("bfloat16", {}),
    "bf16 passes": ("llama", {"precision": "bf16"}),
}


def _model(kind: str) -> LoadedModel:
    if kind == "bfloat16":
        return tiny_model(dtype="bfloat16")
    if kind != "untied":
        return tiny_model(kind)
    torch.manual_seed(0)
    config = tiny_config("llama")
    config.tie_word_embeddings = False
    factory: Any = transformers.AutoModelForCausalLM
    return LoadedModel(factory.from_config(config), tiny_tokenizer(), "untied")


def _recipe(**options: Any) -> LearnRecipe:
    return short_recipe(**{"norm_weight": 0.1, **options})


def _logits(folder: Path) -> dict[str, Any]:
    (arrays,) = folder.glob("step-*.safetensors")
    return load_file(arrays)


def _masks(found: Any) -> dict[str, Any]:
    masks = found.cut(0.25).weights
    return {name: np.packbits(mask.keep()).tolist() for name, mask in masks.items()}


class _Killed(BaseException):
    pass


@contextmanager
def _watched(whole: nn.Module, seen: dict[str, Any]) -> Iterator[None]:
    """Counts what a process holds of a model while it learns."""
    run = Trainer.run

    def watched(trainer: Trainer, after: Callable[[Any], None]) -> None:
        parts = trainer.model
        weights = _weights(parts)
        # A DTensor counts the elements of all processes.
        seen["whole"] = sum(p.numel() for p in weights)
        seen["here"] = sum(
            (p.to_local() if isinstance(p, DTensor) else p).numel() for p in weights
        )
        seen["left"] = sum(p.numel() for p in _weights(whole))
        seen["types"] = sorted({str(p.dtype) for p in weights})
        blocks = [parts.get_submodule(path) for path in blocks_of(parts)]
        seen["gathered"] = []
        for block in blocks:
            counted = partial(_count, blocks, seen["gathered"])
            # Before FSDP's own, which frees what was gathered.
            block.register_forward_hook(counted, prepend=True)
        run(trainer, after)

    with patch.object(Trainer, "run", watched):
        yield


def _weights(model: nn.Module) -> list[Any]:
    return [p for name, p in model.named_parameters() if ".gate." not in name]


def _count(blocks: list[Any], gathered: list[int], *_: Any) -> None:
    gathered.append(sum(not isinstance(_weights(block)[0], DTensor) for block in blocks))


def _every_case(rank: int, folder: Path) -> None:
    for name, (kind, options) in CASES.items():
        model, seen = _model(kind), {}
        before = {key: value.clone() for key, value in model.module.state_dict().items()}
        seen["model"] = sum(p.numel() for p in model.module.parameters())
        text, run = folder / "text.txt", folder / name
        with _watched(model.module, seen):
            recipe = _recipe(shard="full", **options)
            seen["masks"] = _masks(learn_gates(model, [text], recipe, run))
        after = model.module.state_dict()
        seen["unchanged"] = all(torch.equal(before[key], after[key]) for key in before)
        ends: Any = model.module
        tied = ends.get_output_embeddings().weight is ends.get_input_embeddings().weight
        seen["tied"] = tied
        (folder / f"{name} {rank}.json").write_text(json.dumps(seen), "utf-8")


def _other_runs(rank: int, folder: Path) -> None:
    """DDP; a run that is killed; processes that disagree; and a planted mutant."""
    text = folder / "text.txt"

    def run(name: str, **options: Any) -> None:
        recipe = _recipe(**{"shard": "full", **options})
        learn_gates(tiny_model(), [text], recipe, folder / name, resume=True)

    run("ddp", shard="none")
    run("whole")
    take = Trainer._take

    def dying(trainer: Trainer) -> Any:
        if trainer.step == 3:
            raise _Killed
        return take(trainer)

    with patch.object(Trainer, "_take", dying), pytest.raises(_Killed):
        run("killed")
    # Nobody looks for the checkpoint before it is there.
    torch.distributed.barrier()
    run("killed")
    start = learned._start

    def strayed(*arguments: Any) -> Any:
        begun = start(*arguments)
        for gate in begun.gates.values():
            gate.stored.data.add_(torch.rand_like(gate.stored), alpha=float(rank))
        return begun

    with patch.object(learned, "_start", strayed):
        run("strayed")
    with patch.object(train, "average_gradients", lambda _: None):
        run("alone")


@pytest.fixture(scope="module")
def spread(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes have learned every case."""
    folder = tmp_path_factory.mktemp("spread")
    write_text(folder / "text.txt", 900)
    together(_every_case, folder)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_spread_weights_give_what_one_process_gives(
    spread: Path, tmp_path: Path, case: str
) -> None:
    kind, options = CASES[case]
    passes = PROCESSES * options.get("accumulate", 1)
    recipe = _recipe(**{**options, "accumulate": passes})
    alone = _masks(learn_gates(_model(kind), [spread / "text.txt"], recipe, tmp_path / "run"))
    expected, found = _logits(tmp_path / "run"), _logits(spread / case)
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        # The processes' gradients are summed in another order than the passes'.
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5)
    assert all(_seen(spread, case, rank)["masks"] == alone for rank in range(PROCESSES))


def _seen(folder: Path, case: str, rank: int) -> Any:
    return json.loads((folder / f"{case} {rank}.json").read_text("utf-8"))


@pytest.mark.parametrize("case", CASES)
def test_each_process_holds_half_of_the_weights_and_gathers_a_block_at_a_time(
    spread: Path, case: str
) -> None:
    both = [_seen(spread, case, rank) for rank in range(PROCESSES)]
    assert sum(seen["here"] for seen in both) == both[0]["whole"]
    # A tied head that computes in bf16 is a copy.
    assert both[0]["whole"] == both[0]["model"] + (128 * 64 if case == "bf16 passes" else 0)
    for seen in both:
        # Rows are spread evenly: a weight of odd rows leaves one process a row more.
        assert seen["here"] / seen["whole"] == pytest.approx(1 / PROCESSES, rel=0.01)
        assert seen["left"] == 0
        assert set(seen["gathered"]) == {1}


@pytest.mark.parametrize("case", CASES)
def test_the_model_is_whole_again_afterwards(spread: Path, case: str) -> None:
    for rank in range(PROCESSES):
        seen = _seen(spread, case, rank)
        assert seen["unchanged"]
        assert seen["tied"] == (case != "untied")


def test_weights_keep_their_types(spread: Path) -> None:
    assert _seen(spread, "joint", 0)["types"] == ["torch.float32"]
    assert _seen(spread, "bf16 weights", 0)["types"] == ["torch.bfloat16"]
    # Norms and embeddings stay as they were.
    assert len(_seen(spread, "bf16 passes", 0)["types"]) == 2


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(torch.equal(value, other[key]) for key, value in one.items())


def test_spread_or_copied_killed_or_not_the_logits_are_the_same(tmp_path: Path) -> None:
    write_text(tmp_path / "text.txt", 900)
    together(_other_runs, tmp_path)
    whole = _logits(tmp_path / "whole")
    assert _same(whole, _logits(tmp_path / "killed"))
    for key, value in _logits(tmp_path / "ddp").items():
        torch.testing.assert_close(whole[key], value, rtol=1e-4, atol=1e-5)
    # What the first process starts from counts.
    assert _same(whole, _logits(tmp_path / "strayed"))
    # A mutant: without the mean each process learns for itself.
    assert not _same(whole, _logits(tmp_path / "alone"))


def test_what_cannot_be_spread_is_told_before_anything_slow(tmp_path: Path) -> None:
    text = write_text(tmp_path / "text.txt", 900)
    with pytest.raises(RecipeError, match=r"shard \| is 'full', and there is one process"):
        learn_gates(tiny_model(), [text], _recipe(shard="full"), tmp_path / "run")
    with pytest.raises(RecipeError, match=r"shard \| is 'full', and method 'wanda' takes no"):
        LearnRecipe(shard="full")


def _shared(model: Any) -> None:
    first, second = model.model.layers
    second.mlp.up_proj.weight = first.mlp.up_proj.weight


def _with_gaps(model: Any) -> None:
    layer = model.model.layers[0].mlp.up_proj
    layer.weight = nn.Parameter(layer.weight.detach().T.contiguous().T)


def _without_blocks(model: Any) -> None:
    model.model.layers = nn.ModuleList()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_shared, "'model.layers.1.mlp.up_proj.weight' is also a weight of another block"),
        (_with_gaps, "'model.layers.0.mlp.up_proj.weight' is not contiguous in memory"),
        (_without_blocks, "LlamaForCausalLM has no blocks that are known"),
    ],
)
def test_models_that_cannot_be_spread_are_refused(
    damage: Callable[[Any], None], message: str
) -> None:
    module = tiny_model().module
    check_shardable(module)
    damage(module)
    with pytest.raises(RecipeError) as caught:
        check_shardable(module)
    assert str(caught.value) == f"shard | is 'full', and {message}; leave --shard out"


def test_an_fsdp2_launch_asks_for_spread_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    module, recipe = tiny_model().module, _recipe()
    assert as_launched(recipe, module) == recipe
    # As `accelerate launch --use_fsdp --fsdp_version 2` sets them.
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv("FSDP_SHARDING_STRATEGY", "FULL_SHARD")
    monkeypatch.setenv("FSDP_RESHARD_AFTER_FORWARD", "true")
    monkeypatch.setenv("FSDP_OFFLOAD_PARAMS", "false")
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    monkeypatch.setenv("FSDP_AUTO_WRAP_POLICY", "TRANSFORMER_BASED_WRAP")
    monkeypatch.setenv("FSDP_TRANSFORMER_CLS_TO_WRAP", "LlamaDecoderLayer")
    assert as_launched(recipe, module) == _recipe(shard="full")


@pytest.mark.parametrize(
    ("variable", "value", "remedy"),
    [
        ("FSDP_VERSION", "1", "set fsdp_version to 2"),
        ("FSDP_RESHARD_AFTER_FORWARD", "false", "set fsdp_reshard_after_forward to true"),
        ("FSDP_OFFLOAD_PARAMS", "true", "set fsdp_offload_params to false"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true", "give --recompute"),
        ("FSDP_AUTO_WRAP_POLICY", "SIZE_BASED_WRAP", "to TRANSFORMER_BASED_WRAP"),
        ("FSDP_IGNORED_MODULES", ".*mlp", "leave fsdp_ignored_modules out"),
        ("FSDP_TRANSFORMER_CLS_TO_WRAP", "LlamaMLP", "LlamaDecoderLayer is wrapped"),
    ],
)
def test_what_a_launch_asks_and_learning_cannot_do_is_refused(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, remedy: str
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv(variable, value)
    with pytest.raises(RecipeError, match=f"{variable}={value}, which learning") as caught:
        as_launched(_recipe(), tiny_model().module)
    assert str(caught.value).endswith(remedy)


def test_a_launch_that_names_no_version_means_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.delenv("FSDP_VERSION", raising=False)
    with pytest.raises(RecipeError, match="FSDP_VERSION=1, which learning cannot do"):
        as_launched(_recipe(), tiny_model().module)
