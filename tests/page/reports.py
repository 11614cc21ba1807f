"""Reports of models with any number of linears, as the planner writes them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from patch_compile.compiler import plan_model
from patch_compile.recipe import CompileRecipe
from tests.support import Linear, linear_model, masks_of, random_mask, random_weight

__all__ = [
    "ENGINE",
    "HOSTILE",
    "VERIFICATION",
    "llama_names",
    "report_text",
    "with_facts",
]

# A name that closes every context it may stand in.
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&amp;{{7*7}}"

_KINDS = (
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
)
# Everything 2:4, bands, free tiles that only a cover lowers, and nothing at all.
_TILES = ("weight", "band:8", "8x8", "band:16")

# What `build` and `verify` add, with the worst that they can find.
ENGINE: dict[str, Any] = {
    "engine": "compiled.sm86.engine",
    "sm": [86],
    "version": "1.2.3",
    "requested": True,
    "eligible": 9,
    "chosen": "unknown",
}
VERIFICATION: dict[str, Any] = {
    "passed": False,
    "outputs": [
        {
            "name": "logits",
            "dtype": "float16",
            "shape": [1, 2],
            "max_abs": "nan",
            "relative": 0.00123,
            "argmax_agreement": None,
            "atol": 0.5,
            "rtol": 0.02,
            "passed": False,
        }
    ],
    "perplexity": {"dense": 12.0071, "masked": 19.0464, "compiled": "inf"},
    "tokens": 2044,
    "unapplied": {"x.weight": "why not"},
    "data": "held-out.txt",
    "recipe": {"tokens": 4096, "window": 512},
}


def llama_names(count: int) -> list[str]:
    """Names of `count` linears of a decoder, layer by layer."""
    names = [
        f"model.layers.{layer}.{kind}" for layer in range(-(-count // 7)) for kind in _KINDS
    ]
    return names[:count]


def report_text(folder: Path, names: Sequence[str], *, left_alone: int = 1) -> str:
    """The report.json of a model with these linears, of which the last have no masks."""
    rng = np.random.default_rng(0)
    linears = [Linear(name, random_weight(rng, 32, 48)) for name in names]
    masked = linears[: len(linears) - left_alone]
    masks = [_mask(rng, index, linear) for index, linear in enumerate(masked)]
    path = linear_model(linears, folder / "model.onnx")
    planned = plan_model(path, masks_of(*masks), CompileRecipe(min_gain=0.1))
    return planned.report.to_json()


def _mask(rng: np.random.Generator, index: int, linear: Linear) -> Any:
    tile = _TILES[index % len(_TILES)]
    dense = {
        "weight": [[False]],
        "band:8": [[False], [True], [False], [False]],
        "8x8": np.array([1, 0, 0, 0])[:, None] | np.array([0, 1, 0, 0, 0, 0]),
        "band:16": [[True], [True]],
    }[tile]
    name = f"{linear.name}.weight"
    return random_mask(rng, name, linear.weight, tile, dense=np.array(dense, np.bool_))


def with_facts(text: str, **facts: Any) -> str:
    """The report with these facts in place of its own."""
    return json.dumps({**json.loads(text), **facts})
