"""Planted mutants: a branch of an attention that is wrong does not pass the tests."""

from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx.shape_inference import InferenceError

from patch_compile.errors import InternalError, MaskError
from patch_compile.passes import branches, fused_heads, heads_copy, inner_axis
from patch_compile.tiles.blocks import Cut
from tests.passes.test_attention import FORMS, case, check_heads

# A graph whose shapes do not fit is refused by the runtime, before it runs or while it does.
_STATE: Any = import_module("onnxruntime.capi.onnxruntime_pybind11_state")
OrtError = (_STATE.Fail, _STATE.InvalidArgument, _STATE.RuntimeException)


_ON_THREE_AXES: Any = fused_heads._on_three_axes


def _one_branch(self: Any, op: Any, y: ir.Value, **_: Any) -> Any:
    dense, sparse = self.halves(op, y)
    emit = self.emit(op, y)
    emit.product(sparse, 1)
    return emit.product(dense, 0)


def _first_groups(_region: Any, _n: int, rows: Any) -> list[int]:
    return list(range(len(rows)))


def _all_groups(self: Any, part: Any) -> int:
    return int(part.number) * (3 if isinstance(part, heads_copy.PerGroup) else 1)


def _unturned(self: Any, step: Any) -> None:
    self.made[step.node.outputs[0]] = self.made[step.reads[0]]


def _first_rows(self: Cut, spans: Any, size: int, stacks: int = 1) -> Any:
    inner = size // self.units
    return ((0, inner * sum(b - a for a, b in spans)),) if spans[0][0] else ((inner, size),)


def _from_the_end(self: Any, value: ir.Value, layout: Any) -> ir.Value:
    flipped: NDArray[Any] = np.flip(value.const_value.numpy(), layout.axis)  # type: ignore[union-attr]
    kept = flipped.take(range(len(self.groups) * layout.inner.fixed), axis=layout.axis)
    made: ir.Value = self.emit.op.initializer(
        ir.tensor(np.ascontiguousarray(kept), name=self.emit.jobs.fresh("wrong"))
    )
    return made


def _all_heads(self: Any, layout: Any) -> ir.Shape:
    return ir.Shape([size.fixed for size in layout.dims])


def _as_many_heads(*arguments: Any) -> Any:
    return replace(_ON_THREE_AXES(*arguments), counts={})


@pytest.mark.parametrize(
    ("target", "attribute", "mutant"),
    [
        (branches.SplitBranches, "rewrite", _one_branch),
        (heads_copy.HeadsCopy, "_dims", _all_heads),
        (inner_axis, "_groups", _first_groups),
        (heads_copy.HeadsCopy, "_number", _all_groups),
        (heads_copy.HeadsCopy, "_turn", _unturned),
        (heads_copy.HeadsCopy, "_constant", _from_the_end),
        (Cut, "along", _first_rows),
    ],
)
def test_planted_mutant_is_caught(
    monkeypatch: pytest.MonkeyPatch, target: Any, attribute: str, mutant: Any
) -> None:
    """A wrong branch gives a wrong answer, a piece that is not 2:4, or a graph no one runs."""
    arguments = case((False, True, False), bias=True, chain=True)
    check_heads(*arguments, "branches")
    monkeypatch.setattr(target, attribute, mutant)
    with pytest.raises((AssertionError, InternalError, MaskError, InferenceError, *OrtError)):
        check_heads(*arguments, "branches")


@pytest.mark.parametrize("form", [form for form in ("flat", "told") if form in FORMS])
def test_attention_told_of_all_heads_is_caught(
    monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    arguments = case((False, True, False), form=form, head=8, share=1)
    check_heads(*arguments, "branches")
    monkeypatch.setattr(fused_heads, "_on_three_axes", _as_many_heads)
    with pytest.raises((AssertionError, *OrtError)):
        check_heads(*arguments, "branches")
