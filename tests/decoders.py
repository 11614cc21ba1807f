"""Small decoders and encoders built with onnx.helper, with tokenizers for them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

VOCABULARY = 12
PAST, PRESENT = "past_key_values.0.key", "present.0.key"


def table(seed: int = 0) -> NDArray[np.float32]:
    """A row of logits (V, V) for each token."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((VOCABULARY, VOCABULARY)).astype(np.float32)


def bigram(path: Path, rows: NDArray[Any] | None = None) -> Path:
    """A decoder without a cache: the last token alone decides, `logits = rows[input_ids]`."""
    rows = table() if rows is None else rows
    node = helper.make_node("Gather", ["rows", "input_ids"], ["logits"])
    width = rows.shape[1]
    return _saved(path, [node], {"rows": rows}, ["input_ids"], ["logits"], width=width)


def running(path: Path, seed: int = 0, *, past: Any = ("batch", "past")) -> Path:
    """A decoder with a cache: logits are the sum of the rows of all tokens so far.

    The cache, (batch, past, V), holds the rows; positions say how many of them a token sees,
    and the mask which, so that a wrong position, a wrong mask or a lost row shows.
    """
    lower = np.tril(np.ones((64, 64), np.float32))
    nodes = [
        helper.make_node("Gather", ["rows", "input_ids"], ["new"]),
        helper.make_node("Concat", [PAST, "new"], [PRESENT], axis=1),
        helper.make_node("Shape", ["attention_mask"], ["total"], start=1),
        helper.make_node("Slice", ["lower", "zero", "total", "one"], ["cut"]),
        helper.make_node("Gather", ["cut", "position_ids"], ["seen"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "one"], ["masks"]),
        helper.make_node("Mul", ["seen", "masks"], ["weights"]),
        helper.make_node("MatMul", ["weights", PRESENT], ["logits"]),
    ]
    tensors = {
        "rows": table(seed),
        "lower": lower,
        "zero": np.array([0]),
        "one": np.array([1]),
    }
    inputs = ["input_ids", "attention_mask", "position_ids", PAST]
    return _saved(path, nodes, tensors, inputs, ["logits", PRESENT], past=past)


def encoder(path: Path) -> Path:
    """Every position sees all tokens."""
    nodes = [
        helper.make_node("Gather", ["rows", "input_ids"], ["each"]),
        helper.make_node("ReduceMean", ["each", "one"], ["mean"], keepdims=1),
        helper.make_node("Add", ["each", "mean"], ["logits"]),
    ]
    tensors = {"rows": table(), "one": np.array([1])}
    return _saved(path, nodes, tensors, ["input_ids"], ["logits"])


def _saved(
    path: Path,
    nodes: list[onnx.NodeProto],
    tensors: dict[str, Any],
    inputs: list[str],
    outputs: list[str],
    *,
    past: Any = ("batch", "past"),
    width: int = VOCABULARY,
) -> Path:
    shapes = {
        "attention_mask": ["batch", "total"],
        PAST: [*past, VOCABULARY],
        PRESENT: ["batch", "total", VOCABULARY],
        "logits": ["batch", "sequence", width],
    }

    def info(name: str) -> onnx.ValueInfoProto:
        floats = name in (PAST, PRESENT, "logits")
        kind = TensorProto.FLOAT if floats else TensorProto.INT64
        return helper.make_tensor_value_info(
            name, kind, shapes.get(name, ["batch", "sequence"])
        )

    graph = helper.make_graph(
        nodes,
        "decoder",
        [info(name) for name in inputs],
        [info(name) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in tensors.items()],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


def tokenizer(folder: Path, **config: Any) -> Path:
    """Token i is the word `w<i>`; config.json has what is given."""
    words = {f"w{i}": i for i in range(VOCABULARY)}
    made = Tokenizer(models.WordLevel(words, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment] # its stubs
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return folder


def bytes_tokenizer(folder: Path) -> Path:
    """Token i is the byte i, so that most characters of most scripts are several tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment] # its stubs
    made.decoder = decoders.ByteLevel()  # type: ignore[assignment] # its stubs
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    return folder
