"""A model of words, its masks, its tokenizer and a text: all that quantising wants."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from patch_compile.io.masks_file import save_masks
from tests.support import band_mask, masks_of, random_mask, random_weight

__all__ = ["WORDS", "words"]

WORDS = 40


def words(folder: Path) -> Path:
    """Writes model.onnx (embedding, a, Relu, b), masks.json, tokenizer.json and text.txt.

    The mask of a is in bands, that of b wholly 2:4.
    """
    rng = np.random.default_rng(0)
    a, b = random_weight(rng, 64, 32), random_weight(rng, WORDS, 64)
    a, b = 0.2 * a, 0.2 * b
    table = rng.standard_normal((WORDS, 32)).astype(np.float32)
    tensors = {"table": table, "a.weight": a.T, "b.weight": b.T}
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["x"], name="embed"),
        helper.make_node("MatMul", ["x", "a.weight"], ["h"], name="a"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "b.weight"], ["logits"], name="b"),
    ]
    lead = ["batch", "sequence"]
    graph = helper.make_graph(
        nodes,
        "words",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, lead)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [*lead, WORDS])],
        [numpy_helper.from_array(np.ascontiguousarray(t), n) for n, t in tensors.items()],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(onnx.shape_inference.infer_shapes(model), folder / "model.onnx")
    whole = random_mask(rng, "b.weight", b, "weight", dense=np.array([[False]]))
    save_masks(masks_of(band_mask(rng, "a.weight", a), whole), folder / "masks.json")
    vocabulary = {f"w{i}": i for i in range(WORDS)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="w0"))  # type: ignore[arg-type]
    tokenizer.pre_tokenizer = Whitespace()  # type: ignore[assignment]
    tokenizer.save(str(folder / "tokenizer.json"))
    text = " ".join(f"w{i}" for i in rng.integers(0, WORDS, 200))
    (folder / "text.txt").write_text(text)
    return folder
