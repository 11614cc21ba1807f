"""Predicates that every compiled graph must meet; a failure is a bug of ours.

Some of them a graph must meet before it is compiled: there a failure is the model's.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import onnx_ir as ir

from patch_compile.errors import InternalError, ModelError
from patch_compile.io.onnx_model import FLOAT_BITS, open_bits
from patch_compile.passes.sites import ROLE, pieces
from patch_compile.tiles.inspect import violations

__all__ = [
    "PREDICATES",
    "Interface",
    "check_legal",
    "check_whole",
    "pieces_are_products",
    "same_interface",
    "sparse_pieces_are_24",
    "typed_values",
    "unique_names",
]


@dataclass(frozen=True)
class Interface:
    """What a caller of the model sees.

    Attributes:
        inputs: their names.
        outputs: their names.
        opsets: domains and their versions.
        types: element types of inputs and outputs; None where the graph does not tell.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    opsets: tuple[tuple[str, int], ...]
    types: tuple[ir.DataType | None, ...]

    @classmethod
    def of(cls, model: ir.Model) -> "Interface":
        """Reads it off a model."""
        return cls(
            tuple(value.name or "" for value in model.graph.inputs),
            tuple(value.name or "" for value in model.graph.outputs),
            tuple(sorted(model.opset_imports.items())),
            tuple(value.dtype for value in (*model.graph.inputs, *model.graph.outputs)),
        )


def same_interface(model: ir.Model, before: Interface) -> Iterator[str]:
    """Inputs, outputs and opset imports kept their names, order, types and versions."""
    now = Interface.of(model)
    if replace(now, types=before.types) != before:
        yield f"the interface was {before} and is {now}"
        return
    names = (*now.inputs, *now.outputs)
    for name, was, made in zip(names, before.types, now.types, strict=True):
        if was is not None and made != was:
            yield f"'{name}' was {was.name} and is {'untyped' if made is None else made.name}"


def unique_names(model: ir.Model, _: Interface) -> Iterator[str]:
    """No two values of the graph have one name."""
    seen: set[str] = set()
    graph = model.graph
    outputs = [value for node in graph for value in node.outputs]
    for value in (*graph.initializers.values(), *outputs):
        if value.name and value.name in seen:
            yield f"two values are named '{value.name}'"
        seen.add(value.name or "")


def typed_values(model: ir.Model, _: Interface) -> Iterator[str]:
    """What a piece makes has the element type of its weight, wherever types are known."""
    for node in pieces(model):
        weight, made = node.inputs[1], node.outputs[0]
        if weight is not None and made.dtype is not None and made.dtype != weight.dtype:
            yield f"'{made.name}' is {made.dtype}, its weight {weight.dtype}"


def pieces_are_products(model: ir.Model, _: Interface) -> Iterator[str]:
    """A marked node is a MatMul over a constant whose K suits its role."""
    for node in pieces(model):
        weight = node.inputs[1] if len(node.inputs) == 2 else None
        tensor = None if weight is None else weight.const_value
        if node.op_type != "MatMul" or tensor is None:
            yield f"'{node.name}' is marked a piece but is no product over a constant"
        elif node.metadata_props[ROLE] == "sparse24" and tensor.shape.numpy()[0] % 4:
            yield f"'{node.name}' sums over {tensor.shape} rows, no multiple of 4"


Predicate = Callable[[ir.Model, Interface], Iterator[str]]

PREDICATES: tuple[Predicate, ...] = (
    same_interface,
    unique_names,
    typed_values,
    pieces_are_products,
)


def check_legal(model: ir.Model, before: Interface) -> None:
    """Runs every predicate on a rewritten model.

    That `sparse24` pieces are 2:4 in their stored bytes is checked by `PieceTensor` as each
    strip is written; `sparse_pieces_are_24` checks a model that was read back.

    Raises:
        InternalError: with every finding.
    """
    findings = [finding for predicate in PREDICATES for finding in predicate(model, before)]
    if findings:
        raise InternalError("compiled graph | " + "; ".join(findings))


def named_interface(_: ir.Model, interface: Interface) -> Iterator[str]:
    """Inputs and outputs have names, each its own."""
    for word, names in (("input", interface.inputs), ("output", interface.outputs)):
        if "" in names:
            yield f"an {word} has no name"
        twice = {name for name in names if name and names.count(name) > 1}
        yield from (f"two {word}s are named '{name}'" for name in sorted(twice))


def imported_opset(model: ir.Model, interface: Interface) -> Iterator[str]:
    """The operators of the default domain have a version."""
    known = dict(interface.opsets)
    if "" not in known and any(node.domain == "" for node in model.graph):
        yield f"no opset of the default domain is imported, only {known}"


def made_values(model: ir.Model, _: Interface) -> Iterator[str]:
    """Every node makes something, and every output is made by something."""
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if not node.outputs:
            yield f"node '{node.name}' ({node.op_type}) has no output"
    for value in model.graph.outputs:
        given = value.is_graph_input() or value.is_initializer()
        if value.producer() is None and not given:
            yield f"output '{value.name}' is made by no node"


def check_whole(model: ir.Model) -> None:
    """Refuses a model that no runtime would take, before anything is made of it.

    Raises:
        ModelError: with the first finding.
    """
    interface = Interface.of(model)
    for predicate in (named_interface, imported_opset, unique_names, made_values):
        for finding in predicate(model, interface):
            raise ModelError(
                f"model | is not whole: {finding}; expected a valid graph; export it again"
            )


def sparse_pieces_are_24(model: ir.Model) -> list[str]:
    """Names the `sparse24` pieces of a model on disk whose bytes are not 2:4 along K."""
    return [node.name or "?" for node in pieces(model) if not _holds(node)]


def _holds(node: ir.Node) -> bool:
    weight = node.inputs[1]
    tensor = None if weight is None else weight.const_value
    if node.metadata_props[ROLE] != "sparse24":
        return True
    if tensor is None or tensor.dtype not in FLOAT_BITS:
        return False
    return violations(open_bits(tensor), axis=0) == 0
