"""Which weights of a model can be pruned.

N: out features. K: in features. torch.nn.Linear stores its weight (N, K); the Conv1D of
transformers, which GPT-2 is made of, stores it (K, N).
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from patch_compile._require import require
from patch_compile.errors import ModelError
from patch_compile.names import chosen

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

__all__ = ["Linear", "find_linears", "prunable"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Linear:
    """A linear layer of a model.

    Attributes:
        name: of its weight, e.g. `model.layers.0.mlp.up_proj.weight`.
        module: the layer.
        weight: as stored; live, so writing to it changes the model.
        transposed: it is stored (K, N) rather than (N, K).
    """

    name: str
    module: "nn.Module"
    weight: "nn.Parameter"
    transposed: bool

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        n, k = self.matrix(self.weight).shape
        return n, k

    def matrix(self, stored: "Tensor") -> "Tensor":
        """Returns the (N, K) view of a tensor that is laid out as the weight is stored."""
        return stored.T if self.transposed else stored

    def array(self) -> NDArray[np.float32]:
        """Returns the weight, float32 (N, K), row-major; it may share the weight's memory."""
        matrix = self.matrix(self.weight.detach()).float().contiguous().cpu()
        array: NDArray[np.float32] = matrix.numpy()
        return array


def find_linears(model: "PreTrainedModel") -> dict[str, Linear]:
    """Lists the linear layers of a model by the names of their weights, in its own order."""
    linear = require("torch.nn", "learn").Linear
    conv = require("transformers.pytorch_utils", "learn").Conv1D
    found: dict[str, Linear] = {}
    for path, module in model.named_modules():
        if isinstance(module, (linear, conv)):
            weight: Any = module.weight
            name = f"{path}.weight"
            found[name] = Linear(name, module, weight, isinstance(module, conv))
    return found


def prunable(
    model: "PreTrainedModel", include: Sequence[str] = (), ignore: Sequence[str] = ()
) -> dict[str, Linear]:
    """Lists the linear layers whose weights can go 2:4, by the names of their weights.

    Embeddings, the output head, weights that are shared and those whose K is no multiple of
    4 are left out, with the reason in the log.

    Args:
        model: a causal language model.
        include: globs or `re:` patterns of names to take; empty takes all.
        ignore: globs or `re:` patterns of names to leave out.

    Raises:
        ModelError: if nothing remains.
    """
    found = find_linears(model)
    reasons = _reasons(model, found)
    for name, reason in reasons.items():
        logger.info("%s stays dense: %s", name, reason)
    fit = [name for name in found if name not in reasons]
    kept = chosen(fit, include, ignore)
    if not kept:
        raise ModelError(_nothing(fit, reasons))
    return {name: found[name] for name in kept}


def _reasons(model: "PreTrainedModel", found: Mapping[str, Linear]) -> dict[str, str]:
    """Says of each linear that cannot be pruned why."""
    ends: Any = model
    head, embedding = ends.get_output_embeddings(), ends.get_input_embeddings().weight
    uses = Counter(id(linear.weight) for linear in found.values())
    reasons: dict[str, str] = {}
    for name, linear in found.items():
        if linear.module is head:
            reasons[name] = "it is the output head"
        elif linear.weight is embedding:
            reasons[name] = "it is tied to the embeddings"
        elif uses[id(linear.weight)] > 1:
            reasons[name] = "several layers share it"
        elif not linear.weight.is_floating_point():
            reasons[name] = f"its elements are {linear.weight.dtype}, not floats"
        elif linear.shape[1] % 4:
            reasons[name] = f"its {linear.shape[1]} in features are no multiple of 4"
    return reasons


def _nothing(fit: Sequence[str], reasons: Mapping[str, str]) -> str:
    if fit:
        return (
            f"weights | none of {len(fit)} is chosen, e.g. {list(fit[:4])}; "
            "widen --include or narrow --ignore; globs are of whole names, as in '*.mlp.*'"
        )
    found = [f"'{name}' ({reason})" for name, reason in list(reasons.items())[:4]]
    return (
        f"model | has no linear layer that can go 2:4: {', '.join(found) or 'it has none'}; "
        "expected a transformer whose in features are multiples of 4"
    )
