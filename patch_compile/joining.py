"""Which products of a compiled model run sparse: an engine's layers back to the weights.

N: out features. K: in features. M: tokens.

Four words are kept apart, see `report`. `chosen` needs a kernel's name in the engine's
inspector, or the layer's name in the build log. `not chosen` needs as much: a dense kernel's
name, or a log that lists those chosen. Everything else is `unknown`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from patch_compile.runtimes.layer_info import unnumbered
from patch_compile.whynot import Case, why_not

if TYPE_CHECKING:
    from patch_compile.runtimes.evidence import EngineLayer, Evidence

__all__ = ["Joined", "PieceJoin", "PieceSite", "WeightJoin", "join"]

Verdict = Literal["chosen", "not chosen", "unknown"]


@dataclass(frozen=True)
class PieceSite:
    """One product of a compiled model.

    Attributes:
        node: the ONNX node's name.
        weight: the masks it took, joined by `+`.
        role: `dense` or `sparse24`.
        shape: (N, K) of the piece.
        dtype: element type that its weight is stored in.
        eligible: its stored bytes are 2:4 along K, by our own check.
        lead: the leading axes of X, whose product is M; None where the rank is unknown.
    """

    node: str
    weight: str
    role: str
    shape: tuple[int, int]
    dtype: str
    eligible: bool
    lead: tuple[int | str | None, ...] | None = None

    def tokens(self, symbols: Mapping[str, int]) -> int | None:
        """Returns M where the symbols have these sizes; None if one is unknown."""
        if self.lead is None:
            return None
        total = 1
        for axis in self.lead:
            size = axis if isinstance(axis, int) else symbols.get(axis or "")
            if size is None:
                return None
            total *= size
        return total


@dataclass(frozen=True)
class PieceJoin:
    """What became of one product that should run sparse.

    Attributes:
        node: the ONNX node's name.
        shape: (N, K).
        verdict: `chosen`, `not chosen` or `unknown`.
        reason: why not, or why nobody knows; empty for `chosen`.
        layer: the engine's layer it went into; empty if none was found.
        tactic: the layer's kernel; empty if it is not named.
        fused: other ONNX nodes in that layer.
    """

    node: str
    shape: tuple[int, int]
    verdict: Verdict
    reason: str
    layer: str
    tactic: str
    fused: tuple[str, ...]


@dataclass(frozen=True)
class WeightJoin:
    """The 2:4 products of one weight.

    Attributes:
        weight: the masks it took, joined by `+`.
        eligible: products that are 2:4 by our own check.
        pieces: what became of each 2:4 product.
        chosen: products with a sparse kernel.
        not_chosen: products with a dense kernel.
        unknown: products that nobody tells of.
    """

    weight: str
    eligible: int
    pieces: tuple[PieceJoin, ...]
    chosen: int = field(init=False)
    not_chosen: int = field(init=False)
    unknown: int = field(init=False)

    def __post_init__(self) -> None:
        verdicts = [piece.verdict for piece in self.pieces]
        object.__setattr__(self, "chosen", verdicts.count("chosen"))
        object.__setattr__(self, "not_chosen", verdicts.count("not chosen"))
        object.__setattr__(self, "unknown", verdicts.count("unknown"))


@dataclass(frozen=True)
class Joined:
    """An engine seen from the weights.

    Attributes:
        weights: those that have a 2:4 product, in graph order.
        nodes: ONNX nodes of the compiled model.
        layers: layers of its engine; None if the engine told nothing.
        dense_layers: layers of the dense model's engine, to see lost fusions; None if there
            is none.
    """

    weights: tuple[WeightJoin, ...]
    nodes: int
    layers: int | None
    dense_layers: int | None = None

    @property
    def chosen(self) -> int | Literal["unknown"]:
        """Products with a sparse kernel; `unknown` unless every product's fate is known."""
        if not self.weights or any(weight.unknown for weight in self.weights):
            return "unknown"
        return sum(weight.chosen for weight in self.weights)

    def to_json(self) -> dict[str, Any]:
        """Returns plain data."""
        return {
            "chosen": self.chosen,
            "nodes": self.nodes,
            "layers": "unknown" if self.layers is None else self.layers,
            "dense_layers": "unknown" if self.dense_layers is None else self.dense_layers,
            "weights": [asdict(weight) for weight in self.weights],
        }


def join(
    sites: Sequence[PieceSite],
    nodes: int,
    evidence: "Evidence",
    dense: "Evidence | None" = None,
) -> Joined:
    """Tells for every 2:4 product of a model whether its engine runs it sparse.

    Args:
        sites: the products, in graph order.
        nodes: ONNX nodes in the model.
        evidence: what the engine, its log and its build told.
        dense: the same of the engine of the dense model, for its layers.
    """
    layers = _layers_by_node(evidence.layers)
    weights: dict[str, list[PieceJoin]] = {}
    eligible: dict[str, int] = {}
    for site in sites:
        if site.role == "sparse24":
            found = _join_piece(site, layers.get(site.node), evidence)
            weights.setdefault(site.weight, []).append(found)
            eligible[site.weight] = eligible.get(site.weight, 0) + site.eligible
    return Joined(
        weights=tuple(WeightJoin(w, eligible[w], tuple(p)) for w, p in weights.items()),
        nodes=nodes,
        layers=len(evidence.layers) or None,
        dense_layers=None if dense is None else len(dense.layers) or None,
    )


def _layers_by_node(layers: Iterable["EngineLayer"]) -> dict[str, "EngineLayer"]:
    """The layer that computes each node: of several, the one whose kernel multiplies.

    A reformat before a product carries the product's name too, and a kernel of its own.
    """
    found: dict[str, EngineLayer] = {}
    for layer in layers:
        for node in layer.nodes:
            if node not in found or _rank(layer) > _rank(found[node]):
                found[node] = layer
    return found


def _rank(layer: "EngineLayer") -> int:
    words = f"{layer.kind} {layer.tactic}".lower()
    if layer.sparse:
        return 3
    if any(word in words for word in ("gemm", "matrixmultiply", "matmul", "mma")):
        return 2
    return 0 if layer.kind in ("Reformat", "NoOp", "Constant", "Shuffle") else 1


def _join_piece(
    site: PieceSite, layer: "EngineLayer | None", evidence: "Evidence"
) -> PieceJoin:
    verdict = _verdict(site.node, layer, evidence)
    reason = "" if verdict == "chosen" else why_not(_case(site, layer, evidence, verdict))
    return PieceJoin(
        node=site.node,
        shape=site.shape,
        verdict=verdict,
        reason=reason,
        layer="" if layer is None else layer.name,
        tactic="" if layer is None else layer.tactic,
        fused=() if layer is None else tuple(n for n in layer.nodes if n != site.node),
    )


def _verdict(node: str, layer: "EngineLayer | None", evidence: "Evidence") -> Verdict:
    names = evidence.sparsity.chosen
    if layer is not None and layer.sparse:
        return "chosen"
    if names is not None and _named(node, layer, names):
        return "chosen"
    if not evidence.requested:
        return "not chosen"
    if layer is not None and layer.tactic and _rank(layer) >= 2:
        return "not chosen"
    if names is not None and all(_readable(name) for name in names):
        return "not chosen"
    return "unknown"


def _named(node: str, layer: "EngineLayer | None", names: Iterable[str]) -> bool:
    """The log names layers: a node alone, or fused, as `a + b`; Myelin adds its number."""
    parts = {unnumbered(part.strip()) for name in names for part in name.split(" + ")}
    return node in parts or (layer is not None and layer.name in names)


def _readable(name: str) -> bool:
    """Myelin's own names, as `__myl_Fc_myl2_7`, do not tell which nodes they are of."""
    return not name.startswith("__my") and "ForeignNode[" not in name


def _case(
    site: PieceSite, layer: "EngineLayer | None", evidence: "Evidence", verdict: Verdict
) -> Case:
    names = evidence.sparsity.eligible
    listed = None if names is None or not all(map(_readable, names)) else names
    return Case(
        known=verdict == "not chosen",
        requested=evidence.requested,
        backend=evidence.backend,
        sm=evidence.sm,
        eligible=site.eligible,
        found=None if listed is None else _named(site.node, layer, listed),
        shape=site.shape,
        dtype=site.dtype,
        tokens=site.tokens(dict(evidence.symbols)),
        outputs=() if layer is None else layer.outputs,
        swallowed=layer is None and any(one.opaque for one in evidence.layers),
        told=bool(evidence.layers) or evidence.sparsity.chose is not None,
    )
