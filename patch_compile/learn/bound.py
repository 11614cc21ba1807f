"""Weights of one MLP or one attention, which share an inner axis.

N: out features. K: in features.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from patch_compile.errors import ModelError
from patch_compile.learn.linears import find_linears

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Bound", "bound_weights", "head_width"]


@dataclass(frozen=True)
class _Roles:
    """Layers of one module that share an inner axis, by their names there.

    Attributes:
        rows: those that make it, as their N.
        columns: the one that sums over it, as its K.
        fused: how many weights lie one after the other along the N of a layer of `rows`.
    """

    rows: tuple[str, ...]
    columns: str
    fused: int = 1


_QKV = ("q_proj", "k_proj", "v_proj")

# By the families that have each form.
_ROLES: Mapping[str, tuple[_Roles, ...]] = {
    "mlp": (
        _Roles(("gate_proj", "up_proj"), "down_proj"),  # Llama, Mistral, Qwen, Gemma
        _Roles(("c_fc",), "c_proj"),  # GPT-2
        _Roles(("fc1",), "fc2"),  # OPT
    ),
    # The last of `rows` has a head of keys or values for each group.
    "heads": (
        _Roles(_QKV, "o_proj"),  # Llama, Mistral, Qwen, Gemma
        _Roles(_QKV, "out_proj"),  # OPT
        _Roles(("c_attn",), "c_proj", fused=3),  # GPT-2
    ),
}


@dataclass(frozen=True)
class Bound:
    """The weights of one MLP or one attention.

    Attributes:
        module: their module's path.
        rows: names of the weights that make the inner axis.
        columns: name of the weight that sums over it.
        fused: as in `_Roles`.
    """

    module: str
    rows: tuple[str, ...]
    columns: str
    fused: int

    @property
    def names(self) -> tuple[str, ...]:
        """All its weights."""
        return (*self.rows, self.columns)


def bound_weights(
    model: "PreTrainedModel", kind: str, asked: str | None = None
) -> list[Bound]:
    """Finds every MLP (`mlp`) or attention (`heads`) by the names of its layers alone.

    Args:
        model: to look at.
        kind: of what is looked for.
        asked: what it is needed for, by default itself.

    Raises:
        ModelError: if there is none.
    """
    names = find_linears(model)
    modules = dict.fromkeys(name.rsplit(".", 2)[0] for name in names)
    found = [_match(module, roles) for module in modules for roles in _ROLES[kind]]
    bound = [each for each in found if names.keys() >= {*each.names}]
    if not bound:
        forms = ", or ".join("/".join((*r.rows, r.columns)) for r in _ROLES[kind])
        raise ModelError(
            f"model | has no '{kind}' that is known among {list(names)[:3]}; expected linear "
            f"layers named {forms} in one module; leave '{asked or kind}' out"
        )
    return bound


def _match(module: str, roles: _Roles) -> Bound:
    rows = tuple(f"{module}.{row}.weight" for row in roles.rows)
    return Bound(module, rows, f"{module}.{roles.columns}.weight", roles.fused)


def head_width(model: "PreTrainedModel", bound: Bound) -> int:
    """Returns the features of a head of keys or values.

    Raises:
        ModelError: if the module does not say.
    """
    head: object = getattr(model.get_submodule(bound.module), "head_dim", None)
    if not isinstance(head, int) or head < 1:
        raise ModelError(
            f"weight '{bound.columns}' | belongs to a module whose `head_dim` is {head!r}; "
            "expected the features of a head; leave 'heads' out"
        )
    return head
