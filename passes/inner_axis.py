"""What `branches` and `sink order` share: an inner axis in two halves.

I: features of the inner axis, of an MLP; the axis of an attention is cut between its heads.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from patch_compile.errors import InternalError
from patch_compile.passes.attention import Attention, find_attention
from patch_compile.passes.constants import fixed_tensor
from patch_compile.passes.heads_copy import HeadsCopy
from patch_compile.passes.lowering import Emitter, LoweringRule, products
from patch_compile.passes.regions import Region, find_region
from patch_compile.tiles.plan import Piece, Span, indices, length

__all__ = ["InnerAxisRule"]


class InnerAxisRule(LoweringRule):
    """A product that sums over an inner axis, and all that lies before it.

    The pattern is the last product alone: the engine cannot match "any elementwise operations
    before it", so `find_region` or `find_attention` walks back, as it did when the group was
    planned. What it finds is left behind without readers.
    """

    def halves(self, op: Any, y: ir.Value) -> tuple[ir.Value, ir.Value]:
        """The dense and the 2:4 half of the values that the product `y` sums over."""
        node = y.producer()
        assert node is not None
        region = find_region(node) or find_attention(node)
        if not isinstance(region, Region | Attention):
            raise InternalError(f"product '{y.name}' | was planned with a region it has not")
        dense, sparse = (self._half(op, y, region, index) for index in (0, 1))
        return dense, sparse

    def pieces_before(self, y: ir.Value) -> tuple[Piece, ...]:
        """The pieces of the weights that make the axis: all are cut at the same features."""
        group = self.jobs.group(self.emit(None, y).job)
        assert group is not None
        return self.jobs.by_weight[group.rows[0]].plan.pieces

    def _half(self, op: Any, y: ir.Value, region: Region | Attention, index: int) -> ir.Value:
        makers = [self.emit(op, product.outputs[0]) for product in region.products]
        made = self._products(region, makers, index)
        piece = makers[0].job.plan.pieces[index]
        if isinstance(region, Attention):
            groups = _groups(region, makers[0].job.plan.shape[0], piece.rows)
            heads = HeadsCopy(self.emit(op, y), groups, piece.role, made)
            for step in region.steps:
                heads.add(step)
        else:
            copy = _Copy(self.emit(op, y), region, piece.rows, piece.role, made)
            for node in region.nodes:
                copy.add(node)
        last = region.root.inputs[0]
        assert last is not None
        return made[last]

    def _products(
        self, region: Region | Attention, makers: list[Emitter], index: int
    ) -> dict[ir.Value, ir.Value]:
        """What this half's pieces make, by the outputs of the whole products."""
        group = self.jobs.group(makers[0].job)
        assert group is not None
        outputs = [product.outputs[0] for product in region.products]
        if group.merged:
            x = region.products[0].inputs[0]
            assert x is not None
            values = products(x, [(emit, index) for emit in makers], merged=True)
        else:
            values = [
                emit.product(x, index)
                for emit, product in zip(makers, region.products, strict=True)
                if (x := product.inputs[0]) is not None
            ]
        return dict(zip(outputs, values, strict=True))


def _groups(region: Attention, n: int, rows: Sequence[Span]) -> list[int]:
    """Which groups of heads the rows of a piece make."""
    inner = n // (region.stacks[0] * region.groups)
    found: list[int] = np.unique(indices(rows) // inner % region.groups).tolist()
    return found


@dataclass(frozen=True)
class _Copy:
    """The nodes of a region once more, for some of its features.

    Attributes:
        emit: writes nodes.
        region: what is copied.
        spans: the features that this copy has.
        label: goes into every name.
        made: the copy's values by the region's own.
    """

    emit: Emitter
    region: Region
    spans: tuple[Span, ...]
    label: str
    made: dict[ir.Value, ir.Value]

    def add(self, node: ir.Node) -> None:
        """Copies one node whose operands are there."""
        value = node.outputs[0]
        if node.op_type == "Reshape":
            # Rows of 2-D products are the root's rows: elementwise operations need no more.
            source = node.inputs[0]
            assert source is not None
            self.made[value] = self._operand(source)
            return
        inputs = [
            None if operand is None else self._operand(operand) for operand in node.inputs
        ]
        jobs = self.emit.jobs
        out = self.emit.op.op(
            node.op_type,
            *inputs,
            _domain=node.domain,
            _version=node.version,
            _outputs=[jobs.fresh(f"{value.name}/patch/{self.label}")],
            _name=jobs.fresh_node(f"{node.name or value.name}/patch/{self.label}"),
            **node.attributes,
        )
        out.type, out.shape = value.type, self._shape(value)
        self.made[value] = out

    @property
    def features(self) -> int:
        """I."""
        return self.emit.job.plan.shape[1]

    def _shape(self, value: ir.Value) -> ir.Shape | None:
        if value.shape is None or value.shape.rank() == 0 or value.shape[-1] != self.features:
            return value.shape
        lead = list(value.shape)[:-1]
        if self.region.flattened:
            first = self.region.products[0].outputs[0].shape
            assert first is not None
            lead = list(first)[:-1]
        return ir.Shape([*lead, length(self.spans)])

    def _operand(self, value: ir.Value) -> ir.Value:
        if value not in self.made:
            tensor = fixed_tensor(value)
            self.made[value] = value if tensor is None else self._constant(value, tensor)
        return self.made[value]

    def _constant(self, value: ir.Value, tensor: ir.TensorProtocol) -> ir.Value:
        """The part of a constant that belongs to this half; one number serves both."""
        shape = tensor.shape.numpy()
        if not shape or shape[-1] != self.features or self.features == 1:
            return self._flat(value, tensor)
        whole = tensor.numpy()
        row = whole.reshape(-1) if self.region.flattened else whole
        return self._initializer(value, np.take(row, indices(self.spans), axis=-1), tensor)

    def _flat(self, value: ir.Value, tensor: ir.TensorProtocol) -> ir.Value:
        """A number in more axes than the flattened values have would give them more."""
        if not self.region.flattened or tensor.shape.rank() <= 1:
            return value
        return self._initializer(value, tensor.numpy().reshape(1), tensor)

    def _initializer(
        self, value: ir.Value, array: NDArray[Any], like: ir.TensorProtocol
    ) -> ir.Value:
        name = self.emit.jobs.fresh(f"{self.emit.y.name}/patch/{self.label}/{value.name}")
        tensor = ir.Tensor(np.ascontiguousarray(array), dtype=like.dtype, name=name)
        made: ir.Value = self.emit.op.initializer(tensor)
        return made
