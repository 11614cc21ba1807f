"""Names on the page: a weight's own, its place in the model, and reasons that are alike."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup, escape

__all__ = ["Place", "alike", "breakable", "label", "place", "together"]

_PERCENTAGE = re.compile(r"-?\d+(?:\.\d+)?%")


class Place(NamedTuple):
    """Where a weight stands: the number of its layer, if it has one, and its kind."""

    layer: int | None
    kind: str


def label(weight: Mapping[str, Any]) -> str:
    """Returns what people call a weight: the parameters whose masks it took."""
    return " + ".join(weight["masks"]) or weight["weight"]


def breakable(name: str) -> Markup:
    """Returns a name that may be broken behind its dots and slashes."""
    return Markup("<wbr>").join(escape(part) for part in re.split(r"(?<=[./])", name))


def place(weight: Mapping[str, Any]) -> Place:
    """Splits `model.layers.7.mlp.up_proj.weight` into 7 and `mlp.up_proj`.

    The first number of a path is the layer; later ones, as of experts, become `*`.
    """
    parts = [_split(name) for name in weight["masks"] or (weight["weight"],)]
    kinds = " + ".join(kind for _, kind in parts)
    return Place(parts[0][0], kinds)


def _split(name: str) -> Place:
    bare = re.sub(r"[./]weight$", "", name)
    found = re.search(r"(?:^|[./])(\d+)[./](.+)$", bare)
    if found is None:
        return Place(None, bare)
    return Place(int(found[1]), re.sub(r"(?<=[./])\d+(?=[./]|$)", "*", found[2]))


def alike(reason: str) -> str:
    """Returns a reason without its percentages: the rest tells reasons apart."""
    return _PERCENTAGE.sub("…%", reason)


def together(reasons: Sequence[str]) -> str:
    """Returns reasons that are `alike` as one: percentages that differ as least and most."""
    columns = zip(*(_PERCENTAGE.findall(reason) for reason in reasons), strict=True)
    spans = [sorted(set(column), key=lambda text: float(text[:-1])) for column in columns]
    texts = iter([" to ".join(dict.fromkeys((span[0], span[-1]))) for span in spans])
    return _PERCENTAGE.sub(lambda _: next(texts), reasons[0])
