"""Reading what engines tell about themselves.

That is trtexec's `--exportLayerInfo`, `--exportProfile` and `--exportTimes`, and the JSON of
TensorRT's EngineInspector, which is that of the first.

With `--profilingVerbosity=detailed` a layer is an object, else only its name. TensorRT 11 has
`I/O Tensors` for `Bindings`, and `DataType` apart from `Format`.
"""

import re
from pathlib import Path
from typing import Any

from patch_compile.errors import ModelError
from patch_compile.parsing import parse_json
from patch_compile.runtimes.evidence import EngineLayer

__all__ = ["read_layer_file", "read_layers", "read_profile", "read_times", "unnumbered"]

# Several nodes are joined by U+001E or U+001F, or by nothing.
_NODE = "[ONNX Layer: "
_NODE_END = re.compile(r"\](?=[\x1e\x1f\[]|$)")
# Myelin numbers its kernels: `/mlp/fc1/Gemm_myl5_155`.
_MYELIN_NUMBER = re.compile(r"_myl\d+_\d+$")
_POINTWISE = re.compile(r"^PWN\((.*)\)$")


def read_layers(text: str, subject: str = "layer info") -> tuple[EngineLayer, ...]:
    """Returns the layers of an engine, in order.

    Args:
        text: the JSON.
        subject: opens the error message.

    Raises:
        ModelError: if it is no such JSON.
    """
    layers = _parse(text, subject, dict).get("Layers")
    if not isinstance(layers, list) or not all(isinstance(x, str | dict) for x in layers):
        raise ModelError(f"{subject} | has no list of Layers; export it with trtexec again")
    return tuple(_layer(layer) for layer in layers)


def _layer(layer: Any) -> EngineLayer:
    if isinstance(layer, str):
        return EngineLayer(name=layer, nodes=_nodes_of_name(layer))
    name = str(layer.get("Name", ""))
    nodes = _nodes_of_metadata(str(layer.get("Metadata", "")))
    sparse = layer.get("HasSparseWeights")
    return EngineLayer(
        name=name,
        kind=str(layer.get("LayerType", "")),
        tactic=str(layer.get("TacticName", "")),
        nodes=tuple(dict.fromkeys(nodes)) or _nodes_of_name(name),
        inputs=_types(layer.get("Inputs")),
        outputs=_types(layer.get("Outputs")),
        sparse_weights=None if sparse is None else bool(sparse),
    )


def _nodes_of_metadata(text: str) -> tuple[str, ...]:
    """One search for a mark and one for its end: time stays linear in the text."""
    parts = text.split(_NODE)[1:]
    ends = (_NODE_END.search(part) for part in parts)
    return tuple(part[: end.start()] for part, end in zip(parts, ends, strict=True) if end)


def _nodes_of_name(name: str) -> tuple[str, ...]:
    """`a + PWN(b)` is a fusion of a and b; a region of Myelin names no node."""
    if "ForeignNode[" in name:
        return ()
    parts = (unnumbered(part.strip()) for part in name.split(" + "))
    return tuple(_POINTWISE.sub(r"\1", part) for part in parts if part)


def unnumbered(name: str) -> str:
    """Returns a node's name without the number that Myelin gives its kernel."""
    return _MYELIN_NUMBER.sub("", name)


def _types(tensors: Any) -> tuple[str, ...]:
    """Element types as the inspector words them, as in `Row major Int8 format` or `Half`."""
    if not isinstance(tensors, list):
        return ()
    return tuple(_type(tensor) for tensor in tensors if isinstance(tensor, dict))


def _type(tensor: dict[str, Any]) -> str:
    for name in ("DataType", "Datatype", "Format/Datatype"):
        if name in tensor:
            return str(tensor[name])
    return ""


def read_profile(text: str, subject: str = "profile") -> dict[str, float]:
    """Returns the median milliseconds of every layer, from `--exportProfile`.

    Releases that give no median give the average.

    Raises:
        ModelError: if it is no such JSON.
    """
    rows = [row for row in _parse(text, subject, list) if isinstance(row, dict)]
    return {
        str(row["name"]): _milliseconds(row, "medianMs" if "medianMs" in row else "averageMs")
        for row in rows
        if "name" in row and "averageMs" in row
    }


def read_times(text: str, subject: str = "times") -> list[float]:
    """Returns the GPU's compute milliseconds of every run, from `--exportTimes`.

    Raises:
        ModelError: if it is no such JSON.
    """
    rows = _parse(text, subject, list)
    return [
        _milliseconds(row, "computeMs")
        for row in rows
        if isinstance(row, dict) and "computeMs" in row
    ]


def _milliseconds(row: dict[str, Any], key: str) -> float:
    value = row[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12:
        raise ModelError(
            f"times | have {str(value)[:80]!r} for {key}; expected milliseconds; export them "
            "with trtexec again"
        )
    return float(value)


def _parse(text: str, subject: str, kind: type) -> Any:
    try:
        data = parse_json(text)
    except ValueError as error:
        raise ModelError(
            f"{subject} | is no JSON: {error}; export it with trtexec again"
        ) from error
    if not isinstance(data, kind):
        raise ModelError(
            f"{subject} | is a {type(data).__name__}; expected a {kind.__name__}; export it "
            "with trtexec again"
        )
    return data


def read_layer_file(path: Path) -> tuple[EngineLayer, ...]:
    """Returns the layers in a file; none if there is no such file.

    Raises:
        ModelError: if it is no such JSON.
    """
    if not path.is_file():
        return ()
    return read_layers(path.read_text("utf-8", "replace"), f"layer info '{path}'")
