"""What a model does with a text: its activations, and the size of its gradients.

N: out features. K: in features. W: windows. T: tokens in a window.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from patch_compile._require import require
from patch_compile.errors import ModelError
from patch_compile.learn._progress import Progress, tell
from patch_compile.learn.grams import Grams, idle
from patch_compile.learn.linears import Linear
from patch_compile.learn.questions import questions, uncached
from patch_compile.learn.readable import check_windows

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

__all__ = ["Statistics", "calibrate"]


@dataclass(frozen=True, eq=False)
class Statistics:
    """Sums over a text, by the names of the weights; empty where they were not asked for.

    Attributes:
        moments: float64 (K,), the sum over all tokens of x^2, x the layer's input.
        fisher: float32 (N, K), the sum over windows of g^2, g the gradient of a window's
            mean loss in nats; the diagonal of the empirical Fisher matrix.
        fisher_rows: float64 (N,), the same summed over K, at a fraction of the memory.
        grams: float32 (K, K), X^T X, X (tokens, K) the layer's input; layers that read the
            same tensor have the same array.
    """

    moments: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    fisher: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    fisher_rows: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    grams: dict[str, NDArray[np.float32]] = field(default_factory=dict)


def calibrate(
    model: "PreTrainedModel",
    linears: Mapping[str, Linear],
    windows: NDArray[np.int64],
    *,
    moments: bool,
    fisher: bool = False,
    fisher_rows: bool = False,
    grams: bool = False,
    bf16: bool = False,
    mask_token: int | None = None,
    progress: Progress | None = None,
) -> Statistics:
    """Runs the model over windows, one at a time, and sums what the linears see.

    Without `fisher` and `fisher_rows` there is no backward pass. With `fisher`, peak memory is
    that of a forward pass and one float32 copy of the weights: each gradient is freed as soon
    as it is added.
    `grams` take 4 K^2 bytes for every distinct input: 0.4 GB for SmolLM2-135M.

    Args:
        model: in evaluation mode; its weights are not changed.
        linears: the layers to watch.
        windows: token numbers, int64 (W, T).
        moments: sum the squared inputs.
        fisher: sum the squared gradients.
        fisher_rows: sum them over the in features as well.
        grams: sum the products of all pairs of inputs.
        bf16: run the passes in bf16; the sums stay as they are.
        mask_token: of a masked language model, whose loss is that of hidden tokens.
        progress: called with (windows done, windows in all, what).

    Raises:
        ModelError: if the windows are none that the model reads, the loss is NaN or infinite,
            or a layer sees no input.
    """
    check_windows(model, windows)
    backward = fisher or fisher_rows
    _check_type(model, backward)
    seen = _zero_moments(model, linears) if moments else {}
    squares = _zero_squares(linears) if fisher else {}
    rows = _zero_rows(model, linears) if fisher_rows else {}
    products = Grams(linears if grams else {})
    with ExitStack() as watch:
        watch.enter_context(_watched_inputs(linears, seen))
        watch.enter_context(products.watch())
        watch.enter_context(_watched_gradients(model, linears, squares, rows))
        for done, window in enumerate(windows):
            tell(progress, done, len(windows), "calibrating")
            _run(model, window, mask_token, backward=backward, bf16=bf16)
    tell(progress, len(windows), len(windows), "calibrating")
    statistics = Statistics(
        {name: moment.cpu().numpy() for name, moment in seen.items()},
        {name: linears[name].matrix(square).cpu().numpy() for name, square in squares.items()},
        {name: sums.cpu().numpy() for name, sums in rows.items()},
        products.arrays(),
    )
    _check_seen(statistics)
    return statistics


def _check_type(model: "PreTrainedModel", fisher: bool) -> None:
    if fisher and model.dtype.itemsize == 2 and "bfloat" not in str(model.dtype):
        raise ModelError(
            "model | is fp16, whose gradients vanish below 6e-8; expected fp32 or bf16; "
            "load it as fp32, or choose --select error"
        )


def _zero_moments(
    model: "PreTrainedModel", linears: Mapping[str, Linear]
) -> dict[str, "Tensor"]:
    torch = require("torch", "learn")
    return {
        name: torch.zeros(linear.shape[1], dtype=torch.float64, device=model.device)
        for name, linear in linears.items()
    }


def _zero_squares(linears: Mapping[str, Linear]) -> dict[str, "Tensor"]:
    torch = require("torch", "learn")
    return {
        name: torch.zeros_like(linear.weight, dtype=torch.float32, requires_grad=False)
        for name, linear in linears.items()
    }


def _zero_rows(model: "PreTrainedModel", linears: Mapping[str, Linear]) -> dict[str, "Tensor"]:
    torch = require("torch", "learn")
    return {
        name: torch.zeros(linear.shape[0], dtype=torch.float64, device=model.device)
        for name, linear in linears.items()
    }


@contextmanager
def _watched_inputs(
    linears: Mapping[str, Linear], seen: Mapping[str, "Tensor"]
) -> Iterator[None]:
    handles = [
        linears[name].module.register_forward_pre_hook(partial(_add_moment, moment))
        for name, moment in seen.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _add_moment(moment: "Tensor", _module: "nn.Module", inputs: tuple["Tensor", ...]) -> None:
    squares = inputs[0].detach().float().square()
    moment += squares.reshape(-1, squares.shape[-1]).sum(0, dtype=moment.dtype)


@contextmanager
def _watched_gradients(
    model: "PreTrainedModel",
    linears: Mapping[str, Linear],
    squares: Mapping[str, "Tensor"],
    rows: Mapping[str, "Tensor"],
) -> Iterator[None]:
    """Lets only the watched weights require gradients, and squares and frees those."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.requires_grad_(False)
    handles: list[Any] = []
    for name in {**squares, **rows}:
        weight: Any = linears[name].weight.requires_grad_(True)
        take = partial(_take_gradient, linears[name], squares.get(name), rows.get(name))
        handles.append(weight.register_post_accumulate_grad_hook(take))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter, required in before:
            parameter.requires_grad_(required)


def _take_gradient(
    linear: Linear, square: "Tensor | None", rows: "Tensor | None", weight: "Tensor"
) -> None:
    assert weight.grad is not None
    gradient = weight.grad.float()
    if square is not None:
        square.addcmul_(gradient, gradient)
    if rows is not None:
        rows += linear.matrix(gradient).square().sum(1, dtype=rows.dtype)
    weight.grad = None


def _run(
    model: "PreTrainedModel",
    window: NDArray[np.int64],
    mask_token: int | None,
    *,
    backward: bool,
    bf16: bool,
) -> None:
    torch = require("torch", "learn")
    ids, answers = questions(torch.from_numpy(window)[None].to(model.device), mask_token)
    with torch.set_grad_enabled(backward):
        with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
            logits = model(input_ids=ids, **uncached(model)).logits
        loss = torch.nn.functional.cross_entropy(logits[0].float(), answers[0])
        if not torch.isfinite(loss):
            raise ModelError(
                f"loss | is {loss.item()} on the calibration text; the weights are damaged or "
                "overflow in this element type; load the model as fp32"
            )
        if backward:
            loss.backward()


def _check_seen(statistics: Statistics) -> None:
    for sums in (statistics.moments, statistics.fisher, statistics.fisher_rows):
        for name, values in sums.items():
            if not values.any():
                raise ModelError(idle(name))
