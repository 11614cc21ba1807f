"""Graphs around an inner axis, made with onnx.helper, and what they compute in numpy."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from scipy.special import erf

from patch_compile.tiles.masks import Masks
from tests.support import masks_of, random_mask, random_weight

Arrays = dict[str, NDArray[np.float32]]
Keeps = Mapping[str, NDArray[np.bool_]]
Node = Callable[..., onnx.NodeProto]

ACTIVATIONS = ("relu", "silu", "swish", "gelu_erf", "gelu_tanh", "gelu", "clip")


@dataclass(frozen=True)
class Mlp:
    """`f(x G^T + g, x U^T + u) D^T + d`; without `gated` there is no U.

    Attributes:
        products: `MatMul` over (K, N), or `Gemm` over (N, K) on two axes.
        reshaped: GPT-2's form, with Gemm on two axes and f on three.
    """

    hidden: int
    inner: int
    activation: str = "silu"
    gated: bool = True
    bias: bool = False
    products: str = "MatMul"
    reshaped: bool = False
    opset: int = 20
    extra: Sequence[onnx.NodeProto] = field(default=())
    outputs: Sequence[str] = ()

    @property
    def makers(self) -> tuple[str, ...]:
        return ("gate", "up") if self.gated else ("gate",)

    def arrays(self, rng: np.random.Generator) -> Arrays:
        """Weights (N, K) and biases (N,) by name."""
        shapes = dict.fromkeys(self.makers, (self.inner, self.hidden))
        shapes["down"] = (self.hidden, self.inner)
        arrays: Arrays = {f"{n}.weight": random_weight(rng, *s) for n, s in shapes.items()}
        if self.bias:
            for name, (rows, _) in shapes.items():
                arrays[f"{name}.bias"] = rng.standard_normal(rows).astype(np.float32)
        return arrays

    def save(self, path: Path, arrays: Arrays) -> Path:
        """Writes the graph; x is (batch, sequence, hidden), or (tokens, hidden) for Gemm."""
        flat = self.products == "Gemm" and not self.reshaped
        lead = ["tokens"] if flat else ["batch", "sequence"]
        info = helper.make_tensor_value_info
        outputs = [info("y", TensorProto.FLOAT, [*lead, self.hidden])]
        outputs += [info(name, TensorProto.FLOAT, None) for name in self.outputs]
        nodes = [*self._nodes(), *self.extra]
        read = {name for node in nodes for name in node.input}
        graph = helper.make_graph(
            nodes,
            "mlp",
            [info("x", TensorProto.FLOAT, [*lead, self.hidden])],
            outputs,
            [tensor for tensor in self._tensors(arrays) if tensor.name in read],
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=10
        )
        onnx.save(onnx.shape_inference.infer_shapes(model, data_prop=True), path)
        return path

    def _tensors(self, arrays: Arrays) -> list[onnx.TensorProto]:
        turned = {
            name: array.T if array.ndim == 2 and self.products == "MatMul" else array
            for name, array in arrays.items()
        }
        numbers = {"one": 1.0, "half": 0.5, "three": 3.0, "root": np.sqrt(2.0), "six": 6.0}
        numbers |= {"cubic": 0.044715, "scale": np.sqrt(2.0 / np.pi), "zero": 0.0}
        turned |= {name: np.array(value, np.float32) for name, value in numbers.items()}
        tensors = [
            numpy_helper.from_array(np.ascontiguousarray(array), name)
            for name, array in turned.items()
        ]
        shapes = {"flat": [-1, self.hidden], "flat_inner": [-1, self.inner]}
        return tensors + [numpy_helper.from_array(np.array(s), n) for n, s in shapes.items()]

    def _nodes(self) -> list[onnx.NodeProto]:
        node = helper.make_node
        nodes = [node("Shape", ["x"], ["lead"], start=0, end=2)] if self.reshaped else []
        x = self._reshape(nodes, "x", "x_flat", "flat")
        made = {name: self._product(nodes, x, name, self.inner) for name in self.makers}
        inner = _activate(nodes, self.activation, made["gate"])
        if self.gated:
            nodes.append(node("Mul", [inner, made["up"]], ["gated"], name="/mlp/Mul"))
            inner = "gated"
        inner = self._reshape(nodes, inner, "inner_flat", "flat_inner")
        last = self._product(nodes, inner, "down", self.hidden)
        nodes.append(node("Identity", [last], ["y"], name="/mlp/out"))
        return nodes

    def _reshape(self, nodes: list[onnx.NodeProto], value: str, out: str, shape: str) -> str:
        if not self.reshaped:
            return value
        nodes.append(helper.make_node("Reshape", [value, shape], [out]))
        return out

    def _product(self, nodes: list[onnx.NodeProto], x: str, name: str, width: int) -> str:
        place = f"/mlp/{name}"
        bias = [f"{name}.bias"] if self.bias else []
        if self.products == "Gemm":
            inputs = [x, f"{name}.weight", *bias]
            nodes.append(helper.make_node("Gemm", inputs, [name], f"{place}/Gemm", transB=1))
            return self._unflatten(nodes, name, width)
        out = f"{name}_product" if bias else name
        inputs = [x, f"{name}.weight"]
        nodes.append(helper.make_node("MatMul", inputs, [out], name=f"{place}/MatMul"))
        if bias:
            nodes.append(helper.make_node("Add", [*bias, out], [name], name=f"{place}/Add"))
        return name

    def _unflatten(self, nodes: list[onnx.NodeProto], name: str, width: int) -> str:
        if not self.reshaped:
            return name
        nodes += [
            helper.make_node("Constant", [], [f"{name}_w"], value_ints=[width]),
            helper.make_node("Concat", ["lead", f"{name}_w"], [f"{name}_shape"], axis=0),
            helper.make_node("Reshape", [name, f"{name}_shape"], [f"{name}_3d"]),
        ]
        return f"{name}_3d"

    def reference(self, x: NDArray[Any], arrays: Arrays, keeps: Keeps) -> NDArray[np.float64]:
        """The same in float64, with the weights that are kept."""

        def product(value: NDArray[Any], name: str) -> NDArray[np.float64]:
            weight = arrays[f"{name}.weight"].astype(np.float64)
            keep = keeps.get(f"{name}.weight")
            masked = weight if keep is None else np.where(keep, weight, 0.0)
            bias = arrays.get(f"{name}.bias")
            found: NDArray[np.float64] = np.einsum("...k,nk->...n", value, masked)
            return found if bias is None else found + bias

        inner = _activated(self.activation, product(x.astype(np.float64), "gate"))
        if self.gated:
            inner = inner * product(x.astype(np.float64), "up")
        return product(inner, "down")


def _activate(nodes: list[onnx.NodeProto], kind: str, x: str) -> str:
    """The nodes that exporters write for an activation."""

    def call(op: str, *inputs: str, **attributes: Any) -> str:
        out = f"{op.lower()}_{len(nodes)}"
        nodes.append(helper.make_node(op, inputs, [out], name=f"/mlp/act/{out}", **attributes))
        return out

    if kind == "silu":
        return call("Mul", x, call("Sigmoid", x))
    if kind == "swish":
        return call("Swish", x, alpha=1.0)
    if kind == "gelu_erf":
        inner = call("Add", call("Erf", call("Div", x, "root")), "one")
        return call("Mul", call("Mul", x, inner), "half")
    if kind == "gelu_tanh":
        cubed = call("Mul", "cubic", call("Pow", x, "three"))
        inner = call("Tanh", call("Mul", "scale", call("Add", x, cubed)))
        return call("Mul", call("Mul", "half", x), call("Add", inner, "one"))
    if kind == "clip":
        return call("Clip", x, "", "six")
    return call({"relu": "Relu", "gelu": "Gelu"}[kind], x)


def _activated(kind: str, x: NDArray[np.float64]) -> NDArray[np.float64]:
    if kind in ("silu", "swish"):
        return x / (1 + np.exp(-x))
    if kind in ("gelu_erf", "gelu"):
        return np.asarray(x * 0.5 * (1 + erf(x / np.sqrt(2))))
    if kind == "gelu_tanh":
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return np.minimum(x, 6.0) if kind == "clip" else np.maximum(x, 0.0)


def tied_masks(
    rng: np.random.Generator, mlp: Mlp, arrays: Arrays, block: int, dense: NDArray[np.bool_]
) -> Masks:
    """Masks that `--tie mlp` makes: one choice a block of the inner axis, in every weight."""
    shared = dict.fromkeys(mlp.makers, ("band", dense[:, None])) | {
        "down": ("column", dense[None])
    }
    return masks_of(
        *(
            random_mask(
                rng, f"{name}.weight", arrays[f"{name}.weight"], f"{kind}:{block}", dense=tiles
            )
            for name, (kind, tiles) in shared.items()
        )
    )
