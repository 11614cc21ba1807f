"""A whole job of valid files, and every verb's command line over them.

The verbs and their parameters are read off the command line itself: what is added there is
tried here. A parameter that names no file is listed in `NO_FILE`.
"""

import inspect
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from patch_compile.cli.main import app, run
from patch_compile.io.masks_file import save_masks
from patch_compile.learn.model import save_checkpoint
from patch_compile.piece_sites import find_pieces
from tests.learn.tiny import VOCABULARY, tiny_model, write_text
from tests.support import band_mask, masks_of, random_weight

__all__ = ["CASES", "OUTPUTS", "Case", "command_line", "make_job", "verbs"]

# Parameters that are words, not files.
NO_FILE = {"tile", "targets", "sparsity", "prompt"}
# What is written; all else is read.
OUTPUTS = {"output", "run", "checkpoint", "cache", "bundle", "plot"}
# Options that make a verb read or write what it would else have no use for.
NEEDED: dict[tuple[str, str], tuple[str, ...]] = {
    ("", "data"): ("--quantize", "int8"),
    ("", "tokenizer"): ("--quantize", "int8", "--data", "@text.txt"),
    ("learn", "data"): ("--samples", "2", "--window", "16"),
    ("learn", "run"): ("--method", "topk-ste", "--steps", "1"),
    ("learn", "checkpoint"): ("--method", "sparsegpt", "--update"),
    ("cut", "masks"): ("--sparsity", "0.1"),
    ("cut", "output"): ("--sparsity", "0.1"),
    ("build", "masks"): ("--bundle", "@out.tar"),
    ("eval", "tokenizer"): ("--data", "@text.txt", "--window", "16"),
    ("eval", "data"): ("--tokenizer", "@tokenizer.json", "--window", "16"),
    ("verify", "tokenizer"): ("--data", "@text.txt"),
    ("eval", "task_dir"): ("--tasks", "piqa"),
    ("bench", "into"): ("--import", "@results"),
    ("generate", "model"): ("--prompt", "w1"),
    ("generate", "compiled"): ("--prompt", "w1"),
    ("generate", "tokenizer"): ("--prompt", "w1"),
}
# Parameters that stand in place of the positional ones.
INSTEAD = {("bench", "import_"), ("bench", "into")}


@dataclass(frozen=True)
class Case:
    """One parameter of one verb.

    Attributes:
        verb: empty for the main job.
        name: of the parameter.
        positional: it has no option's name.
        hint: its type, whose text tells a Hugging Face model from an ONNX file.
    """

    verb: str
    name: str
    positional: bool
    hint: Any

    @property
    def flag(self) -> str:
        """As it is typed."""
        return "--" + self.name.rstrip("_").replace("_", "-")

    def __str__(self) -> str:
        return f"{self.verb or 'compile'} {self.name if self.positional else self.flag}"


def verbs() -> dict[str, Any]:
    """Every verb's function by name, the main job's under an empty one."""
    named = {name: app[name].default_command for name in app if not name.startswith("-")}
    return {"": app.default_command, **named}


def _cases() -> Iterator[Case]:
    for verb, function in verbs().items():
        hints = get_type_hints(function)
        for parameter in inspect.signature(function).parameters.values():
            hint = hints[parameter.name]
            if parameter.name in NO_FILE or not _may_be_a_file(hint):
                continue
            kinds = (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL)
            positional = parameter.kind in kinds
            yield Case(verb, parameter.name, positional, hint)


def _may_be_a_file(hint: Any) -> bool:
    return hint in (Path, Path | None, str, str | None, tuple[str, ...])


CASES = tuple(_cases())


def make_job(folder: Path) -> Path:
    """A folder in which every verb finds all that it may read.

    The ONNX model is one of language, `embed`, `a` and `b`, so that text can be tried on it.
    """
    rng = np.random.default_rng(0)
    model = _language_model(folder / "model.onnx", rng)
    code = run([str(model), "--tiles", str(folder / "masks.json"), "-o", str(folder / "out")])
    assert code == 0
    save_checkpoint(tiny_model("llama", layers=1), folder / "hf")
    shutil.copy(folder / "hf" / "tokenizer.json", folder)
    write_text(folder / "text.txt", 2048)
    (folder / "tasks").mkdir()
    question = {"query": "w1 w2", "choices": ["w3", "w4"], "gold": 1}
    (folder / "tasks" / "piqa.jsonl").write_text(f"{json.dumps(question)}\n", "utf-8")
    _results(folder)
    return folder


def _language_model(path: Path, rng: np.random.Generator) -> Path:
    shapes = {"a": (32, 32), "b": (VOCABULARY, 32)}
    weights = {name: random_weight(rng, *shape) for name, shape in shapes.items()}
    save_masks(
        masks_of(*(band_mask(rng, f"{n}.weight", w) for n, w in weights.items())),
        path.with_name("masks.json"),
    )
    tensors = {f"{n}.weight": np.ascontiguousarray(w.T) for n, w in weights.items()}
    tensors["embed"] = random_weight(rng, VOCABULARY, 32)
    nodes = [
        helper.make_node("Gather", ["embed", "input_ids"], ["x"]),
        helper.make_node("MatMul", ["x", "a.weight"], ["h"]),
        helper.make_node("MatMul", ["h", "b.weight"], ["logits"]),
    ]
    axes = ["batch", "sequence"]
    graph = helper.make_graph(
        nodes,
        "language",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, axes)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [*axes, VOCABULARY])],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    opsets = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def _results(folder: Path) -> None:
    digest = sha256((folder / "out" / "compiled.onnx").read_bytes()).hexdigest()
    sites, nodes = find_pieces(folder / "out" / "compiled.onnx")
    entry = {"name": "compiled", "sha256": digest, "nodes": nodes}
    entry["pieces"] = [vars(site) for site in sites]
    place = folder / "results" / "compiled"
    place.mkdir(parents=True)
    (place / "status").write_text("0\n", "utf-8")
    recipe = {"sparse": True, "batch": [1, 1, 1], "sequence": [1, 16, 16]}
    manifest = {"recipe": recipe, "models": [entry]}
    text = json.dumps(manifest)
    (place.parent / "manifest.json").write_text(text, "utf-8")


def command_line(case: Case, folder: Path, value: Path | str) -> list[str]:
    """A line in which everything is in order but the parameter of the case.

    Of the other parameters, those that are read are given as well.
    """
    line = [case.verb] if case.verb else []
    positional, options = [], []
    for other in CASES:
        instead = (case.verb, case.name) in INSTEAD and other.positional
        if other.verb != case.verb or instead:
            continue
        given = value if other.name == case.name else _valid(other, folder)
        if given is None:
            continue
        text = f"x={given}" if other.name == "baseline" else str(given)
        if other.positional:
            positional.append(text)
        else:
            options += [other.flag, text]
    needed = NEEDED.get((case.verb, case.name), ())
    more = [str(folder / word[1:]) if word.startswith("@") else word for word in needed]
    return [*line, *positional, *options, *more]


def _valid(case: Case, folder: Path) -> Path | None:
    """The good value of a parameter; None leaves it out."""
    if case.name in OUTPUTS:
        return folder / "written" / _written(case) if case.name == "output" else None
    if not case.positional and case.name != "tiles":
        return None
    names = {
        "tiles": "masks.json",
        "masks": "masks.json",
        "source": "out",
        "folder": "results",
    }
    names |= {"dense": "model.onnx", "compiled": "out/compiled.onnx"}
    names["model"] = "model.onnx" if case.hint is Path or case.verb == "eval" else "hf"
    return folder / names[case.name]


def _written(case: Case) -> str:
    names = {"learn": "masks.json", "cut": "masks.json", "export": "model.onnx"}
    names |= {"plan": "plan.json", "bench": "bench.json", "report": "report.html"}
    return names.get(case.verb, "out")
