"""Attentions made with onnx.helper, in the forms that exporters write, and in numpy."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from patch_compile.tiles.masks import Masks
from tests.passes.mlp import Arrays, Keeps
from tests.support import masks_of, random_mask, random_weight

_EPSILON = 1e-5
_OF_MICROSOFT = ("flat", "told")
TOKENS = 3


@dataclass(frozen=True)
class Heads:
    """softmax(q k^T / sqrt(d) + mask) v of `groups * share` heads of `head` features, then o.

    Attributes:
        groups: heads of keys and values.
        share: query heads of each.
        form: `expand` repeats keys and values, `grouped` gives queries an axis more,
            `op` is one Attention of opset 23, `flat` one MultiHeadAttention, `told` one
            GroupQueryAttention, which adds a causal mask of its own.
        fused: q, k and v are one weight.
        bias: of every product; q, k and v's are cut, o's is not.
        norm: queries and keys are normalised a head.
        rotary: queries and keys are turned by the inputs `cos` and `sin`; GroupQueryAttention
            turns them itself.
        chain: keys are turned by Reshape, Transpose, Reshape, as torch's exporter does.
        slopes: scores get a constant of their own for every head.
        extra: nodes that are added.
        outputs: further outputs of the graph.
    """

    groups: int = 3
    share: int = 2
    head: int = 4
    hidden: int = 16
    form: str = "expand"
    fused: bool = False
    bias: bool = False
    norm: bool = False
    rotary: bool = False
    chain: bool = False
    slopes: bool = False
    extra: Sequence[onnx.NodeProto] = field(default=())
    outputs: Sequence[str] = ()
    changes: dict[str, str] = field(default_factory=dict)

    @property
    def heads(self) -> int:
        return self.groups * self.share

    @property
    def scale(self) -> float:
        # Another than the default, where an operator is told.
        return 0.3 if self.form == "told" else self.head**-0.5

    @property
    def angles(self) -> int:
        """Numbers that `cos` has a token: an operator that turns asks for half of them."""
        return self.head // 2 if self.form == "told" else self.head

    @property
    def makers(self) -> tuple[str, ...]:
        return ("qkv",) if self.fused else ("q", "k", "v")

    def arrays(self, rng: np.random.Generator) -> Arrays:
        """Weights (N, K), biases (N,), norms (head,) and slopes (heads, 1, 1) by name."""
        own, kept = self.heads * self.head, self.groups * self.head
        rows = {"qkv": 3 * own} if self.fused else {"q": own, "k": kept, "v": kept}
        arrays: Arrays = {
            f"{name}.weight": random_weight(rng, n, self.hidden) for name, n in rows.items()
        }
        arrays["o.weight"] = random_weight(rng, self.hidden, own)
        for name, n in {**rows, "o": self.hidden}.items() if self.bias else ():
            arrays[f"{name}.bias"] = rng.standard_normal(n).astype(np.float32)
        for name in ("q", "k") if self.norm else ():
            arrays[f"{name}.norm"] = rng.standard_normal(self.head).astype(np.float32)
        if self.slopes:
            arrays["slopes"] = rng.standard_normal((self.heads, 1, 1)).astype(np.float32)
        return arrays

    def inputs(self, rng: np.random.Generator) -> dict[str, NDArray[np.float32]]:
        shapes: dict[str, tuple[int, ...]] = {
            "x": (2, TOKENS, self.hidden),
            "mask": (1, 1, TOKENS, TOKENS),
        }
        if self.rotary:
            shapes |= dict.fromkeys(("cos", "sin"), (TOKENS, self.angles))
        return {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}

    def save(self, path: Path, arrays: Arrays) -> Path:
        write = _Writer(self, arrays)
        write.attention()
        info = helper.make_tensor_value_info
        lead = ["batch", "sequence"]
        kinds: dict[str, list[Any]] = {
            "x": [*lead, self.hidden],
            "mask": [1, 1, "sequence", "sequence"],
        }
        if self.rotary:
            kinds |= {n: ["sequence", self.angles] for n in ("cos", "sin")}
        graph = helper.make_graph(
            [*write.nodes, *self.extra],
            "attention",
            [info(name, TensorProto.FLOAT, shape) for name, shape in kinds.items()],
            [
                info("y", TensorProto.FLOAT, [*lead, self.hidden]),
                *(info(name, TensorProto.FLOAT, None) for name in self.outputs),
            ],
            write.tensors,
        )
        for node in graph.node:
            renamed = [self.changes.get(f"{node.name}:{name}", name) for name in node.input]
            node.input[:] = renamed
        opsets = [helper.make_opsetid("", 23 if self.form == "op" else 20)]
        if self.form in _OF_MICROSOFT:
            opsets.append(helper.make_opsetid("com.microsoft", 1))
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        onnx.save(onnx.shape_inference.infer_shapes(model), path)
        return path

    def reference(
        self, given: dict[str, NDArray[Any]], arrays: Arrays, keeps: Keeps
    ) -> NDArray[np.float64]:
        """The same in float64, head by head, with the weights that are kept."""
        x = given["x"].astype(np.float64)

        def product(value: NDArray[Any], name: str) -> NDArray[np.float64]:
            weight = arrays[f"{name}.weight"].astype(np.float64)
            keep = keeps.get(f"{name}.weight")
            masked = weight if keep is None else np.where(keep, weight, 0.0)
            found: NDArray[np.float64] = np.einsum("...k,nk->...n", value, masked)
            return found + arrays.get(f"{name}.bias", np.zeros(1))

        if self.fused:
            q, k, v = np.split(product(x, "qkv"), 3, axis=-1)
        else:
            q, k, v = (product(x, name) for name in "qkv")
        made = []
        for index in range(self.heads):
            mine = slice(index * self.head, (index + 1) * self.head)
            first = index // self.share * self.head
            theirs = slice(first, first + self.head)
            queries = self._worked(q[..., mine], "q", given, arrays)
            keys = self._worked(k[..., theirs], "k", given, arrays)
            scores = np.einsum("bqd,bkd->bqk", queries, keys) * self.scale
            scores = scores + given["mask"][0, 0]
            if self.form == "told":
                scores = np.where(np.tri(TOKENS, dtype=bool), scores, -np.inf)
            if self.slopes:
                scores = scores + arrays["slopes"][index]
                scores = np.tanh(scores)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            made.append(np.einsum("bqk,bkd->bqd", weights, v[..., theirs]))
        return product(np.concatenate(made, axis=-1), "o")

    def _worked(
        self, x: NDArray[Any], name: str, given: dict[str, NDArray[Any]], arrays: Arrays
    ) -> NDArray[Any]:
        if self.norm:
            size = np.sqrt((x**2).mean(-1, keepdims=True) + _EPSILON)
            x = x / size * arrays[f"{name}.norm"]
        if self.rotary:
            half = self.head // 2
            other = np.concatenate([-x[..., half:], x[..., :half]], axis=-1)
            cos, sin = (np.tile(given[n], self.head // self.angles) for n in ("cos", "sin"))
            x = x * cos + other * sin
        return x


class _Writer:
    """Writes the nodes of an attention; every node is named after its output."""

    def __init__(self, made: Heads, arrays: Arrays) -> None:
        self.made, self.nodes = made, list[onnx.NodeProto]()
        self.tensors = [
            numpy_helper.from_array(np.ascontiguousarray(a.T if "weight" in n else a), n)
            for n, a in arrays.items()
        ]
        self.arrays = arrays

    def call(self, op: str, out: str, *inputs: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [out], name=out, **attributes))
        return out

    def numbers(self, name: str, *numbers: float, dtype: Any = np.int64) -> str:
        if all(tensor.name != name for tensor in self.tensors):
            self.tensors.append(numpy_helper.from_array(np.array(numbers, dtype), name))
        return name

    def product(self, x: str, name: str, out: str) -> str:
        if f"{name}.bias" not in self.arrays:
            return self.call("MatMul", out, x, f"{name}.weight")
        made = self.call("MatMul", f"{out}_product", x, f"{name}.weight")
        return self.call("Add", out, made, f"{name}.bias")

    def attention(self) -> None:
        made = self.made
        self.call("Shape", "batch_size", "x", start=0, end=1)
        self.call("Shape", "length", "x", start=1, end=2)
        if made.fused:
            self.product("x", "qkv", "qkv")
            names = ["q", "k", "v"]
            self.nodes.append(
                helper.make_node("Split", ["qkv"], names, name="split", axis=2, num_outputs=3)
            )
        else:
            for name in "qkv":
                self.product("x", name, name)
        forms = {"flat": self.flat, "told": self.told}
        joined = forms.get(made.form, self.by_heads)()
        self.product(joined, "o", "y")

    def flat(self) -> str:
        self.nodes.append(
            helper.make_node(
                "MultiHeadAttention",
                ["q", "k", "v", "", "", "mask"],
                ["joined"],
                name="attention",
                domain="com.microsoft",
                num_heads=self.made.heads,
            )
        )
        return "joined"

    def told(self) -> str:
        whole = self.call("Cast", "total", "length", to=TensorProto.INT32)
        one = self.numbers("one", 1, dtype=np.int32)
        last = self.call("Sub", "last_token", whole, one)
        ends = self.call("Expand", "ends", last, "batch_size")
        turns = ("cos", "sin") if self.made.rotary else ("", "")
        self.nodes.append(
            helper.make_node(
                "GroupQueryAttention",
                ["q", "k", "v", "", "", ends, whole, *turns, "", "mask"],
                ["joined", "keys", "values"],
                name="attention",
                domain="com.microsoft",
                num_heads=self.made.heads,
                kv_num_heads=self.made.groups,
                scale=self.made.scale,
                do_rotary=int(self.made.rotary),
            )
        )
        return "joined"

    def by_heads(self) -> str:
        made = self.made
        q, k, v = (self.heads_of(name) for name in "qkv")
        if made.form == "op":
            out = self.call("Attention", "attended", q, k, v, "mask", scale=made.scale)
        else:
            out = self.core(q, *(self.repeated(k), self.repeated(v)))
        if made.form == "grouped":
            out = self.call("Transpose", "back", out, perm=[0, 3, 1, 2, 4])
        else:
            out = self.call("Transpose", "back", out, perm=[0, 2, 1, 3])
        shape = self.shape("joined", "batch_size", "length", self.numbers("rest", -1))
        return self.call("Reshape", "joined", out, shape)

    def shape(self, name: str, *parts: str) -> str:
        return self.call("Concat", f"{name}.shape", *parts, axis=0)

    def heads_of(self, name: str) -> str:
        made, shared = self.made, self.made.form == "grouped" and name == "q"
        own = [self.numbers("rest", -1), self.numbers("head", made.head)]
        if shared:
            own = [
                self.numbers("groups", made.groups),
                self.numbers("share", made.share),
                own[1],
            ]
        shape = self.shape(f"{name}_view", "batch_size", "length", *own)
        value = self.call("Reshape", f"{name}_view", name, shape)
        if made.norm and name != "v":
            value = self.normed(value, name)
        perm = [0, 2, 3, 1, 4] if shared else [0, 2, 1, 3]
        value = self.call("Transpose", f"{name}_heads", value, perm=perm)
        return self.turned(value, name) if made.rotary and name != "v" else value

    def normed(self, value: str, name: str) -> str:
        square = self.call("Mul", f"{name}_square", value, value)
        last = self.numbers("last", -1)
        mean = self.call("ReduceMean", f"{name}_mean", square, last, keepdims=1)
        small = self.numbers("epsilon", _EPSILON, dtype=np.float32)
        root = self.call("Sqrt", f"{name}_root", self.call("Add", f"{name}_sum", mean, small))
        whole = self.call("Div", f"{name}_unit", value, root)
        return self.call("Mul", f"{name}_normed", whole, f"{name}.norm")

    def turned(self, value: str, name: str) -> str:
        start, half = self.numbers("start", 0), self.numbers("half", self.made.head // 2)
        end, last = self.numbers("end", 2**62), self.numbers("last", -1)
        one = self.call("Slice", f"{name}_one", value, start, half, last)
        two = self.call("Slice", f"{name}_two", value, half, end, last)
        minus = self.call("Neg", f"{name}_minus", two)
        other = self.call("Concat", f"{name}_other", minus, one, axis=-1)
        a = self.call("Mul", f"{name}_cos", value, "cos")
        b = self.call("Mul", f"{name}_sin", other, "sin")
        return self.call("Add", f"{name}_rotated", a, b)

    def repeated(self, value: str) -> str:
        made = self.made
        if made.form != "grouped" and made.share == 1:
            return value
        wide = self.call("Unsqueeze", f"{value}_5d", value, self.numbers("two", 2))
        if made.form == "grouped":
            return wide
        head = self.numbers("head", made.head)
        groups, share = self.numbers("groups", made.groups), self.numbers("share", made.share)
        shape = self.shape(f"{value}_wide", "batch_size", groups, share, "length", head)
        wide = self.call("Expand", f"{value}_wide", wide, shape)
        heads = self.numbers("heads", made.heads)
        shape = self.shape(f"{value}_all", "batch_size", heads, "length", head)
        return self.call("Reshape", f"{value}_all", wide, shape)

    def core(self, q: str, k: str, v: str) -> str:
        turned = self.chained(k) if self.made.chain else self.swapped(k)
        scale = self.numbers("scale", self.made.scale, dtype=np.float32)
        scores = self.call("MatMul", "products", self.call("Mul", "scaled", q, scale), turned)
        scores = self.call("Add", "scores", scores, "mask")
        if self.made.slopes:
            scores = self.call("Tanh", "tanh", self.call("Add", "sloped", scores, "slopes"))
        weights = self.call("Softmax", "weights", scores, axis=-1)
        return self.call("MatMul", "attended", weights, v)

    def swapped(self, k: str) -> str:
        perm = [0, 1, 2, 4, 3] if self.made.form == "grouped" else [0, 1, 3, 2]
        return self.call("Transpose", "k_turned", k, perm=perm)

    def chained(self, k: str) -> str:
        shape = self.call("Shape", "k_shape", k)
        last, end = self.numbers("last", -1), self.numbers("end", 2**62)
        second, zero = self.numbers("second", -2), self.numbers("start", 0)
        width = self.call("Slice", "k_width", shape, last, end)
        length = self.call("Slice", "k_length", shape, second, last)
        lead = self.call("Slice", "k_lead", shape, zero, second)
        flat = self.shape("k_flat", last, length, width)
        three = self.call("Reshape", "k_flat", k, flat)
        three = self.call("Transpose", "k_flat_turned", three, perm=[0, 2, 1])
        return self.call(
            "Reshape", "k_turned", three, self.shape("k_turned", lead, width, length)
        )


def tied_heads(
    rng: np.random.Generator, made: Heads, arrays: Arrays, dense: NDArray[np.bool_]
) -> Masks:
    """Masks that `--tie heads` makes: one choice a group, in every weight."""
    found = []
    for name in (*made.makers, "o"):
        weight = arrays[f"{name}.weight"]
        axis = 1 if name == "o" else 0
        tiles = np.tile(dense, 3 if name == "qkv" else 1)
        size = weight.shape[axis] // tiles.size
        if name == "o" and size % 4:
            # No tile parts a group of 4: one is dense where any head in it is.
            held = np.repeat(dense, size)
            tiles = np.array([held[at : at + 4].any() for at in range(0, held.size, 4)])
            size = 4
        kind, map_ = ("column", tiles[None]) if name == "o" else ("band", tiles[:, None])
        found.append(random_mask(rng, f"{name}.weight", weight, f"{kind}:{size}", dense=map_))
    return masks_of(*found)
