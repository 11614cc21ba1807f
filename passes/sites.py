"""Where a model multiplies by a constant weight.

N: out features. K: in features. This walk is by hand because it asks which nodes exist and
which names their weights may carry; the rewrite engine answers only yes or no to a pattern.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from patch_compile.io.onnx_model import FLOAT_BITS
from patch_compile.io.stored_weight import StoredWeight

__all__ = [
    "COMPILED_ALREADY",
    "LOWERING",
    "ROLE",
    "STAMP",
    "WEIGHT",
    "Refusal",
    "Site",
    "constant_tensor",
    "constant_weight",
    "find_sites",
    "names_of",
    "pieces",
    "unshared",
]

# Keys of node metadata. WEIGHT is also written by the exporter.
WEIGHT = "patch_compile.weight"
LOWERING = "patch_compile.lowering"
ROLE = "patch_compile.role"

# The last two never hold floats: they are here to be refused with a reason.
_PRODUCTS = {
    ("", "MatMul"),
    ("", "Gemm"),
    ("", "MatMulInteger"),
    ("com.microsoft", "MatMulNBits"),
}

# Key of model metadata: which masks a compiled model took.
STAMP = "patch_compile.masks"

COMPILED_ALREADY = "already compiled"

_SCOPES = "pkg.torch.onnx.name_scopes"
# A scope in the list, which is written as Python writes a list of strings. Not evaluated: a
# graph may hold any text.
_QUOTED = re.compile(r"['\"]([^'\"]*)['\"]")


@dataclass(frozen=True)
class Site:
    """A weight that one or more MatMul or Gemm nodes multiply by.

    Attributes:
        name: of the initializer, or of a Constant node's output.
        weight: the tensor and how it is stored.
        parameters: names the weight may have in the source model, most certain first.
        aliases: other values that hold the same tensor, as when a function with a Constant
            is inlined twice.
        shared: what else reads it, in words; empty if only products do.
    """

    name: str
    weight: StoredWeight
    parameters: tuple[str, ...]
    aliases: tuple[str, ...] = ()
    shared: str = ""

    @property
    def label(self) -> str:
        """The best name there is for people and masks."""
        return self.parameters[0] if self.parameters else self.name


@dataclass(frozen=True)
class Refusal:
    """A weight that is left alone, and why."""

    name: str
    parameters: tuple[str, ...]
    reason: str


def find_sites(model: ir.Model, *, compiled: bool = False) -> tuple[list[Site], list[Refusal]]:
    """Lists the weights of the main graph's MatMul and Gemm nodes, in graph order.

    A weight used by several nodes is one site with the names of all. Weights that cannot be
    lowered, at one of their nodes at least, come back as refusals with the reason.

    Args:
        model: the model to search.
        compiled: take the pieces of a compiled model too, which cannot be lowered again.
    """
    weights: dict[str, StoredWeight] = {}
    reasons: dict[str, str] = {}
    parameters: defaultdict[str, dict[str, None]] = defaultdict(dict)
    aliases: defaultdict[str, dict[str, None]] = defaultdict(dict)
    firsts: dict[int, str] = {}
    shared: dict[str, str] = {}
    for node, inside in _products(model):
        found = constant_weight(node) or _quantized(node)
        if found is None:
            continue
        value, transposed = found
        tensor = constant_tensor(value)
        assert tensor is not None
        name = firsts.setdefault(id(tensor), value.name or "")
        if value.name != name:
            aliases[name][value.name or ""] = None
        parameters[name].update(dict.fromkeys(names_of(node, value)))
        done = not compiled and LOWERING in node.metadata_props
        reason = COMPILED_ALREADY if done else _refused(node, value, inside)
        if name in weights and weights[name].transposed != transposed:
            reason = reason or "products multiply by it both ways round"
        if reason is not None:
            reasons.setdefault(name, reason)
        weights[name] = StoredWeight(tensor, transposed)
        shared[name] = shared.get(name) or _other_reader(value)
    sites = [
        Site(name, weight, tuple(parameters[name]), tuple(aliases[name]), shared[name])
        for name, weight in weights.items()
        if name not in reasons
    ]
    return sites, [Refusal(n, tuple(parameters[n]), reason) for n, reason in reasons.items()]


def unshared(
    sites: Sequence[Site], refusals: Sequence[Refusal]
) -> tuple[list[Site], list[Refusal]]:
    """Refuses weights that more than products read: a mask would not be the same for both."""
    told = [
        Refusal(site.name, site.parameters, f"is read by {site.shared} as well")
        for site in sites
        if site.shared
    ]
    return [site for site in sites if not site.shared], [*refusals, *told]


def _other_reader(value: ir.Value) -> str:
    """Names what reads a weight and does not multiply by it from the right."""
    if value.is_graph_output():
        return "the graph's caller"
    for node, index in value.uses():
        plain = not node.domain and (node.op_type == "Identity" or _swaps(node))
        found = _other_reader(node.outputs[0]) if plain else _reader(node, index)
        if found:
            return found
    return ""


def _reader(node: ir.Node, index: int) -> str:
    domain = "" if node.domain == "ai.onnx" else node.domain
    product = (domain, node.op_type) in _PRODUCTS and index == 1
    return "" if product else f"{node.op_type} '{node.name}'"


def pieces(model: ir.Model) -> Iterator[ir.Node]:
    """Yields the products that a rewrite made, in graph order."""
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if ROLE in node.metadata_props:
            yield node


def _products(model: ir.Model) -> Iterator[tuple[ir.Node, bool]]:
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        domain = "" if node.domain == "ai.onnx" else node.domain
        if (domain, node.op_type) in _PRODUCTS:
            yield node, node.graph is not model.graph


def constant_weight(node: ir.Node) -> tuple[ir.Value, bool] | None:
    """Finds the constant second operand of a MatMul or Gemm, through Transpose and Identity.

    Returns:
        The value that holds the tensor, and whether it is stored (K, N); None if the
        operand is computed.
    """
    value, turned = _operand(node)
    if value is None or constant_tensor(value) is None:
        return None
    return value, turned == (node.op_type == "Gemm" and _integer(node, "transB") == 1)


def _quantized(node: ir.Node) -> tuple[ir.Value, bool] | None:
    """Finds the integers behind a DequantizeLinear, which are refused for their type."""
    value, turned = _operand(node)
    producer = None if value is None else value.producer()
    if producer is None or producer.op_type != "DequantizeLinear":
        return None
    stored = producer.inputs[0]
    return None if stored is None or constant_tensor(stored) is None else (stored, not turned)


def _operand(node: ir.Node) -> tuple[ir.Value | None, bool]:
    """The second operand before Transposes and Identities, and whether they turn it."""
    value = node.inputs[1] if len(node.inputs) > 1 else None
    turned = False
    while value is not None and (producer := value.producer()) is not None:
        if producer.domain or not (producer.op_type == "Identity" or _swaps(producer)):
            break
        turned ^= producer.op_type == "Transpose"
        value = producer.inputs[0]
    return value, turned


def _swaps(node: ir.Node) -> bool:
    perm = node.attributes.get("perm")
    return node.op_type == "Transpose" and (perm is None or list(perm.as_ints()) == [1, 0])


def _integer(node: ir.Node, name: str) -> int:
    attribute = node.attributes.get(name)
    return 0 if attribute is None else attribute.as_int()


def constant_tensor(value: ir.Value) -> ir.TensorProtocol | None:
    """Returns the tensor of an initializer or of a Constant node."""
    if value.const_value is not None:
        return value.const_value
    producer = value.producer()
    if producer is None or producer.op_type != "Constant":
        return None
    attribute = producer.attributes.get("value")
    return None if attribute is None else attribute.as_tensor()


def _refused(node: ir.Node, value: ir.Value, inside: bool) -> str | None:
    tensor = constant_tensor(value)
    assert tensor is not None
    if inside:
        return f"'{node.name}' lies in a branch or loop body"
    if value.is_graph_input():
        return "a graph input may replace this weight; take it off the graph's inputs"
    if tensor.dtype not in FLOAT_BITS:
        return f"element type {tensor.dtype.name} is not a float of 16 or 32 bits"
    if len(tensor.shape) != 2:
        return f"has {len(tensor.shape)} axes, not 2"
    if 0 in tensor.shape.numpy():
        return f"has shape {tuple(tensor.shape.numpy())}"
    return _product_refused(node, tensor.dtype) or (
        _gemm_refused(node) if node.op_type == "Gemm" else None
    )


def _product_refused(node: ir.Node, dtype: ir.DataType) -> str | None:
    """No runtime takes such a product: it is not ours to mend."""
    if node.inputs[0] is None or len(node.outputs) != 1:
        return f"'{node.name}' lacks an operand or its result"
    made = node.outputs[0].dtype
    if made is not None and made != dtype:
        return f"'{node.name}' is declared to make {made.name} of {dtype.name}"
    return None


def _gemm_refused(node: ir.Node) -> str | None:
    for name in ("alpha", "beta"):
        attribute = node.attributes.get(name)
        if attribute is not None and attribute.as_float() != 1.0:
            return f"Gemm scales by {name} = {attribute.as_float()}"
    return "Gemm transposes its first operand" if _integer(node, "transA") else None


def names_of(node: ir.Node, value: ir.Value) -> tuple[str, ...]:
    """Names a node's weight may carry: metadata first, then initializer and node names."""
    names = [
        node.metadata_props.get(WEIGHT),
        _scope(node),
        _from_initializer(value.name or ""),
    ]
    if "/" in (node.name or ""):
        names.append(_from_path(node.name or ""))
    return tuple(dict.fromkeys(name for name in names if name))


def _scope(node: ir.Node) -> str | None:
    """The module path that torch's dynamo exporter leaves on a node."""
    scopes = _QUOTED.findall(node.metadata_props.get(_SCOPES, ""))
    return f"{scopes[-2]}.weight" if len(scopes) > 1 else None


def _from_initializer(name: str) -> str:
    """onnxruntime-genai writes `model.layers.0.attn.qkv_proj.MatMul.weight`."""
    return name.replace(".MatMul.weight", ".weight")


def _from_path(name: str) -> str:
    """TorchScript writes `/model/layers.0/self_attn/q_proj/MatMul`."""
    return name.strip("/").rpartition("/")[0].replace("/", ".") + ".weight"
